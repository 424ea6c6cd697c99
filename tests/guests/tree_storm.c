/* Short-lived children all the time, by fork, vfork and posix_spawn, two at once: none is lost,
 * each ends with its own status. */
#include "guest.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static pid_t start(unsigned n)
{
    char code[8];
    snprintf(code, sizeof(code), "exit %u", n % 100);
    char *argv[] = {"sh", "-c", code, NULL};
    pid_t pid = -1;
    switch (n % 3) {
    case 0:
        pid = SYS(fork());
        if (pid == 0)
            _exit((int)(n % 100));
        break;
    case 1:
        CHECK_EQ(posix_spawn(&pid, "/bin/sh", NULL, NULL, argv, environ), 0, "posix_spawn");
        break;
    default:
        pid = SYS(vfork());
        if (pid == 0) {
            execv("/bin/sh", argv);
            _exit(127);
        }
    }
    return pid;
}

static void reap(pid_t pid, unsigned n)
{
    int status;
    CHECK_EQ(SYS(waitpid(pid, &status, 0)), pid, "waitpid");
    CHECK(WIFEXITED(status), "child %u: status %#x", n, status);
    CHECK_EQ(WEXITSTATUS(status), n % 100, "exit code of a child");
}

int main(void)
{
    guest_begin();
    guest_ready();
    unsigned n = 0;
    do {
        for (int turn = 0; turn < 8; turn++, n += 2) {
            pid_t one = start(n), other = start(n + 1);
            reap(one, n);
            reap(other, n + 1);
        }
    } while (guest_running());
    int status;
    CHECK_EQ(waitpid(-1, &status, WNOHANG), -1, "a child too many");
    guest_success();
}
