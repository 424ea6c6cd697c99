/* Edge-triggered entries: an edge that is not collected yet comes once at least, a later one
 * always, and what has been collected is at most repeated by a move. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

int main(void)
{
    guest_begin();
    int waiting = SYS(eventfd(0, EFD_NONBLOCK)), ends[2], epoll = SYS(epoll_create1(0));
    SYS(pipe2(ends, O_NONBLOCK));
    struct epoll_event one = {.events = EPOLLIN | EPOLLET, .data.u32 = 1}, event;
    struct epoll_event two = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = 2};
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, waiting, &one));
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &two));
    guest_ready();
    for (int turn = 1;; turn++) {
        uint64_t value = 1;
        char byte;
        SYS(write(waiting, &value, 8));
        SYS(write(ends[1], "x", 1));
        /* A move may come here, before the edges are collected. */
        int running = guest_running();
        uint32_t seen = 0;
        while (SYS(epoll_wait(epoll, &event, 1, 0)) == 1)
            seen |= event.data.u32;
        CHECK_EQ(seen, 3, "edges that were not collected");
        SYS(read(waiting, &value, 8));
        CHECK_EQ(value, 1, "the count");
        SYS(read(ends[0], &byte, 1));
        /* Nothing is there any more: an edge may be repeated only while something is. */
        CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, 0)), 0, "an edge of nothing");
        if (!running)
            break;
    }
    guest_success();
}
