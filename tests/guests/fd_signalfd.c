/* signalfd: its mask, a signal that waits in it across a move, a later change of the mask. */
#include "guest.h"
#include <sys/signalfd.h>

int main(void)
{
    guest_begin();
    sigset_t set, two;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 5);
    two = set;
    sigaddset(&set, SIGUSR2);
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    int fd = SYS(signalfd(-1, &two, SFD_NONBLOCK | SFD_CLOEXEC));
    struct signalfd_siginfo info;
    SYS(kill(getpid(), SIGUSR2)); /* pending, but not for this fd */
    guest_ready();
    for (int turn = 0;; turn++) {
        SYS(kill(getpid(), SIGUSR1));
        SYS(sigqueue(getpid(), SIGRTMIN + 5, (union sigval){.sival_int = turn}));
        int more = guest_running();
        CHECK_EQ(read(fd, &info, sizeof(info)), sizeof(info), "read of the signalfd");
        CHECK_EQ(info.ssi_signo, SIGUSR1, "the first signal");
        CHECK_EQ(info.ssi_pid, getpid(), "its sender");
        CHECK_EQ(read(fd, &info, sizeof(info)), sizeof(info), "read of the signalfd");
        CHECK_EQ(info.ssi_signo, SIGRTMIN + 5, "the second signal");
        CHECK_EQ(info.ssi_int, turn, "its value");
        CHECK(read(fd, &info, sizeof(info)) == -1 && errno == EAGAIN, "a third signal");
        CHECK_EQ(SYS(fcntl(fd, F_GETFD)), FD_CLOEXEC, "close-on-exec");
        if (!more)
            break;
    }
    SYS(signalfd(fd, &set, 0));
    CHECK_EQ(read(fd, &info, sizeof(info)), sizeof(info), "read with the wider mask");
    CHECK_EQ(info.ssi_signo, SIGUSR2, "the signal of the wider mask");
    guest_success();
}
