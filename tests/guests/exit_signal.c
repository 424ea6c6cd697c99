/* Children that share nothing with their parent and tell it their end by another signal than SIGCHLD,
 * or by none (the low byte of the flags of clone(2)); one of them has ended already. */
#include "shared.h"

enum { STACK = 256 << 10, KIDS = 3 };

static volatile sig_atomic_t seen[65];
static const int SIGNALS[KIDS] = {SIGUSR1, 0, SIGUSR2};

static void on_end(int signal)
{
    seen[signal]++;
}

static int child(void *number)
{
    if (SIGNALS[(long)number] == SIGUSR2)
        _exit(9);
    while (!shared->over) {
        shared->partner++;
        shared_nap();
    }
    _exit(7 + (int)(long)number);
}

int main(void)
{
    guest_begin();
    shared_begin();
    struct sigaction act = {.sa_handler = on_end, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    SYS(sigaction(SIGUSR2, &act, NULL));
    SYS(sigaction(SIGCHLD, &act, NULL));
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
    pid_t kids[KIDS];
    int status;
    for (long n = 0; n < KIDS; n++)
        kids[n] = SYS(clone(child, stack + STACK, SIGNALS[n], (void *)n));
    while (!seen[SIGUSR2])
        shared_nap();
    guest_ready();
    do {
        long before = shared->partner;
        while (shared->partner < before + 2)
            shared_nap();
        for (int n = 0; n < KIDS; n++)
            CHECK(waitpid(kids[n], &status, WNOHANG) == -1 && errno == ECHILD, "child %d is a common one", n);
    } while (guest_running());
    shared->over = 1;
    for (int n = 0; n < KIDS; n++) {
        while (waitpid(kids[n], &status, __WCLONE) == -1)
            CHECK_EQ(errno, EINTR, "waitpid");
        CHECK_EQ(WEXITSTATUS(status), 7 + n, "its end");
    }
    CHECK_EQ(seen[SIGUSR1], 1, "the signal of the first one's end");
    CHECK_EQ(seen[SIGUSR2], 1, "the signal of the last one's end");
    CHECK_EQ(seen[SIGCHLD], 0, "signals of common children");
    guest_success();
}
