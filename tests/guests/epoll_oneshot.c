/* EPOLLONESHOT entries that have fired stay silent until they are armed again: of a pipe, an
 * eventfd, a pidfd and a timer. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

enum { KINDS = 3 };

static int epoll, fd[KINDS], writer;

static void set(int op, int n)
{
    SYS(epoll_ctl(epoll, op, fd[n],
                  &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u32 = 1U << n}));
}

static uint32_t ready(void)
{
    struct epoll_event events[KINDS];
    uint32_t all = 0;
    for (int n = SYS(epoll_wait(epoll, events, KINDS, 0)); n > 0; n--)
        all |= events[n - 1].data.u32;
    return all;
}

static void make_ready(void)
{
    struct itimerspec soon = {.it_value.tv_nsec = 1};
    uint64_t one = 1;
    SYS(write(writer, "x", 1));
    SYS(write(fd[1], &one, 8));
    SYS(timerfd_settime(fd[2], 0, &soon, NULL));
    while (SYS(timerfd_gettime(fd[2], &soon)), soon.it_value.tv_nsec)
        ;
}

int main(void)
{
    guest_begin();
    int ends[2];
    SYS(pipe2(ends, O_NONBLOCK));
    fd[0] = ends[0];
    writer = ends[1];
    fd[1] = SYS(eventfd(0, EFD_NONBLOCK));
    fd[2] = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    epoll = SYS(epoll_create1(0));
    for (int n = 0; n < KINDS; n++)
        set(EPOLL_CTL_ADD, n);
    make_ready();
    while (ready())
        ;
    guest_ready();
    do {
        /* Fired, and ready again: not a word. */
        CHECK_EQ(ready(), 0, "an entry that has fired");
        char byte[64];
        uint64_t value;
        while (read(fd[0], byte, sizeof(byte)) > 0)
            ;
        for (int n = 1; n < KINDS; n++)
            CHECK_EQ(SYS(read(fd[n], &value, 8)), 8, "read");
        make_ready();
        CHECK_EQ(ready(), 0, "an entry that has fired, when it is ready once more");
        for (int n = 0; n < KINDS; n++)
            set(EPOLL_CTL_MOD, n);
        uint32_t all = 0;
        for (uint32_t more; (more = ready());)
            all |= more;
        CHECK_EQ(all, (1 << KINDS) - 1, "entries that are armed again");
    } while (guest_running());
    guest_success();
}
