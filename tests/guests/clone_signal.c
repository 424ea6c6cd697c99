/* A process that shares the working directory of its parent, which gets SIGUSR1 at its end and not
 * SIGCHLD (the low byte of the flags of clone(2)). */
#include "shared.h"

enum { STACK = 256 << 10 };

static volatile sig_atomic_t children, others;

static void on_end(int signal)
{
    if (signal == SIGUSR1)
        others++;
    else
        children++;
}

static int partner(void *unused)
{
    (void)unused;
    while (!shared->over) {
        char now[64];
        CHECK(getcwd(now, sizeof(now)) && !strcmp(now, "/usr"), "the common directory");
        shared->partner++;
        shared_nap();
    }
    _exit(7);
}

int main(void)
{
    guest_begin();
    shared_begin();
    struct sigaction act = {.sa_handler = on_end, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    SYS(sigaction(SIGCHLD, &act, NULL));
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(chdir("/usr"));
    pid_t pid = SYS(clone(partner, stack + STACK, CLONE_FS | SIGUSR1, NULL));
    guest_ready();
    do {
        long before = shared->partner;
        int status;
        while (shared->partner < before + 2) {
            CHECK_EQ(SYS(waitpid(pid, &status, WNOHANG | __WCLONE)), 0, "it runs");
            shared_nap();
        }
        CHECK(waitpid(pid, &status, WNOHANG) == -1 && errno == ECHILD, "it is no common child");
    } while (guest_running());
    shared->over = 1;
    int status;
    while (waitpid(pid, &status, __WCLONE) == -1)
        CHECK_EQ(errno, EINTR, "waitpid");
    CHECK_EQ(WEXITSTATUS(status), 7, "its end");
    CHECK_EQ(others, 1, "the signal of its end");
    CHECK_EQ(children, 0, "signals of a common child");
    guest_success();
}
