/* Who has sent a signal, read of a signalfd by all ways: from before a move and made after it,
 * duplicated, inherited, in pieces. */
#include "guest.h"
#include <sys/signalfd.h>
#include <sys/uio.h>
#include <sys/wait.h>

static sigset_t set;

/* Reads one, with the call and the descriptor that `way` says. */
static struct signalfd_siginfo next(int fd, int way)
{
    struct signalfd_siginfo info, more[3];
    int other = -1;
    ssize_t n;
    switch (way) {
    case 0:
        n = read(other = SYS(dup(fd)), &info, sizeof(info));
        break;
    case 1:
        n = read(other = SYS(dup2(fd, 77)), &info, sizeof(info));
        break;
    case 2:
        n = read(other = SYS(fcntl(fd, F_DUPFD_CLOEXEC, 100)), &info, sizeof(info));
        break;
    case 3:
        n = read(other = SYS(signalfd(-1, &set, SFD_NONBLOCK)), &info, sizeof(info));
        break;
    case 4: {
        /* The sender lies across two pieces. */
        char first[14], rest[sizeof(info) - 14];
        struct iovec two[] = {{first, sizeof(first)}, {rest, sizeof(rest)}};
        n = readv(fd, two, 2);
        memcpy(&info, first, sizeof(first));
        memcpy((char *)&info + sizeof(first), rest, sizeof(rest));
        break;
    }
    default:
        n = read(fd, more, sizeof(more[0]));
        info = more[0];
    }
    CHECK(n == sizeof(info), "read %d of a signalfd: %zd, %s", way, n, strerror(errno));
    if (other >= 0)
        SYS(close(other));
    return info;
}

static void expect(int fd, int way, int signal, int code, pid_t sender)
{
    struct signalfd_siginfo info = next(fd, way);
    CHECK_EQ(info.ssi_signo, signal, "signal");
    CHECK_EQ(info.ssi_code, code, "its code");
    CHECK(info.ssi_pid == (uint32_t)sender, "way %d: sender of signal %d is %d, not %d", way, signal,
          info.ssi_pid, sender);
}

int main(void)
{
    guest_begin();
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGRTMIN);
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    int fd = SYS(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    guest_ready();
    int turn = 0, more;
    do {
        int status, way = turn++ % 6;
        struct signalfd_siginfo all[4];
        pid_t child = SYS(fork());
        if (child == 0) {
            /* What it inherits tells it of its own signals. */
            SYS(kill(getpid(), SIGUSR1));
            expect(fd, way, SIGUSR1, SI_USER, getpid());
            SYS(kill(getppid(), SIGUSR1));
            SYS(sigqueue(getppid(), SIGRTMIN, (union sigval){.sival_int = turn}));
            _exit(turn % 100);
        }
        SYS(waitpid(child, &status, 0));
        CHECK_EQ(status, turn % 100 << 8, "status of the child");
        more = guest_running();
        if (turn % 2) {
            expect(fd, way, SIGUSR1, SI_USER, child);
            expect(fd, way, SIGCHLD, CLD_EXITED, child);
            expect(fd, way, SIGRTMIN, SI_QUEUE, child);
        } else {
            CHECK_EQ(SYS(read(fd, all, sizeof(all))), 3 * sizeof(all[0]), "three at once");
            CHECK(all[0].ssi_pid == (uint32_t)child && all[1].ssi_pid == (uint32_t)child &&
                      all[2].ssi_pid == (uint32_t)child,
                  "senders are %d, %d, %d, not %d", all[0].ssi_pid, all[1].ssi_pid, all[2].ssi_pid,
                  child);
            CHECK_EQ(all[1].ssi_status, turn % 100, "status in the signal");
            CHECK_EQ(all[2].ssi_int, turn, "value");
        }
        CHECK(read(fd, all, sizeof(all)) == -1 && errno == EAGAIN, "one more");
    } while (more);
    guest_success();
}
