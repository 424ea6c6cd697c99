/* pidfds of the process itself, its first thread, and its children, shared and in an epoll. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/wait.h>
#include <poll.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif
#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static int open_pidfd(pid_t pid, unsigned flags)
{
    return (int)syscall(SYS_pidfd_open, pid, flags);
}

static int send_by(int fd, int sig)
{
    return (int)syscall(SYS_pidfd_send_signal, fd, sig, NULL, 0);
}

static pid_t start(void)
{
    pid_t pid = SYS(fork());
    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

static int has_ended(int fd)
{
    struct pollfd ask = {.fd = fd, .events = POLLIN};
    return SYS(poll(&ask, 1, 0)) == 1;
}

int main(void)
{
    guest_begin();
    int self = SYS(open_pidfd(getpid(), 0));
    int thread = open_pidfd(getpid(), PIDFD_THREAD);
    CHECK(thread >= 0 || errno == EINVAL, "PIDFD_THREAD: %s", strerror(errno));
    int epoll = SYS(epoll_create1(EPOLL_CLOEXEC));
    pid_t stays = start();
    int staying = SYS(open_pidfd(stays, O_NONBLOCK));
    int shared = SYS(dup(staying));
    guest_ready();
    pid_t goes = start();
    int going = SYS(open_pidfd(goes, 0));
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, going, &(struct epoll_event){.events = EPOLLIN}));
    int turns = 0;
    do {
        struct epoll_event event;
        CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, 0)), 0, "a child that lives is ready");
        CHECK(send_by(self, 0) == 0, "signal 0 to itself: %s", strerror(errno));
        CHECK(thread < 0 || send_by(thread, 0) == 0, "to its thread: %s", strerror(errno));
        CHECK(send_by(shared, 0) == 0, "signal 0 to the child: %s", strerror(errno));
        CHECK(!has_ended(staying) && !has_ended(self), "one that lives has ended");
        CHECK_EQ(SYS(fcntl(shared, F_GETFL)) & O_NONBLOCK, O_NONBLOCK, "flags");
        if (++turns % 3)
            continue;
        SYS(send_by(going, SIGTERM));
        CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, -1)), 1, "the end of a child");
        siginfo_t info;
        SYS(waitid(P_PIDFD, (id_t)going, &info, WEXITED));
        CHECK_EQ(info.si_pid, goes, "pid of the child");
        CHECK_EQ(info.si_status, SIGTERM, "status of the child");
        SYS(close(going));
        goes = start();
        going = SYS(open_pidfd(goes, 0));
        SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, going, &(struct epoll_event){.events = EPOLLIN}));
    } while (guest_running());
    SYS(send_by(shared, SIGKILL));
    SYS(waitpid(stays, NULL, 0));
    SYS(send_by(going, SIGKILL));
    SYS(waitpid(goes, NULL, 0));
    guest_success();
}
