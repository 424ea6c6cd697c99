/* pidfds of a child that has ended and is not reaped, and of children that have been reaped. */
#include "guest.h"
#include <poll.h>
#include <sys/wait.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int open_pidfd(pid_t pid)
{
    return (int)SYS(syscall(SYS_pidfd_open, pid, 0));
}

static void check_ended(int fd, int reaped, const char *what)
{
    struct pollfd ask = {.fd = fd, .events = POLLIN};
    CHECK_EQ(SYS(poll(&ask, 1, 0)), 1, what);
    CHECK_EQ(!!(ask.revents & POLLIN), 1, what);
    long sent = syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0);
    CHECK_EQ(sent == 0 ? 0 : errno, reaped ? ESRCH : 0, what);
}

static pid_t end_by(int status, int sig)
{
    pid_t pid = SYS(fork());
    if (pid == 0) {
        if (sig)
            kill(getpid(), sig);
        _exit(status);
    }
    return pid;
}

int main(void)
{
    guest_begin();
    pid_t ended = end_by(5, 0), reaped = end_by(6, 0), killed = end_by(0, SIGKILL);
    int of_ended = open_pidfd(ended), of_reaped = open_pidfd(reaped), of_killed = open_pidfd(killed);
    siginfo_t info;
    SYS(waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT));
    SYS(waitpid(reaped, NULL, 0));
    SYS(waitpid(killed, NULL, 0));
    guest_ready();
    do {
        check_ended(of_ended, 0, "a child that waits to be reaped");
        check_ended(of_reaped, 1, "a child that was reaped");
        check_ended(of_killed, 1, "a child that was killed and reaped");
        CHECK(waitid(P_PIDFD, (id_t)of_reaped, &info, WEXITED | WNOHANG) == -1, "reaped twice");
        CHECK(waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == ended,
              "another child than the one that has ended");
    } while (guest_running());
    SYS(waitid(P_PIDFD, (id_t)of_ended, &info, WEXITED));
    CHECK_EQ(info.si_status, 5, "status of the child");
    check_ended(of_ended, 1, "the child when it is reaped");
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child too many");
    guest_success();
}
