/* Epoll instances in epoll instances, four deep, shared by a child that changes the list. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

enum { DEPTH = 4 };

static void add(int epoll, int fd, uint32_t events, uint64_t data)
{
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd,
                  &(struct epoll_event){.events = events, .data.u64 = data}));
}

static uint64_t wait_for(int epoll, int ms)
{
    struct epoll_event event = {.data.u64 = 0};
    return SYS(epoll_wait(epoll, &event, 1, ms)) == 1 ? event.data.u64 : 0;
}

int main(void)
{
    guest_begin();
    int epoll[DEPTH], inmost = SYS(eventfd(0, EFD_NONBLOCK)), ask[2], answer[2];
    for (int n = 0; n < DEPTH; n++)
        epoll[n] = SYS(epoll_create1(0));
    for (int n = 0; n + 1 < DEPTH; n++)
        add(epoll[n], epoll[n + 1], EPOLLIN, 100 + (uint64_t)n);
    add(epoll[DEPTH - 1], inmost, EPOLLIN, 999);
    SYS(pipe(ask));
    SYS(pipe(answer));
    pid_t child = SYS(fork());
    if (child == 0) {
        char what;
        uint64_t one = 1;
        close(ask[1]);
        while (SYS(read(ask[0], &what, 1)) == 1) {
            if (what == 'w')
                SYS(write(inmost, &one, 8));
            if (what == 'd')
                SYS(epoll_ctl(epoll[0], EPOLL_CTL_DEL, epoll[1], NULL));
            if (what == 'a')
                add(epoll[0], epoll[1], EPOLLIN, 100);
            SYS(write(answer[1], &what, 1));
        }
        _exit(0);
    }
    guest_ready();
    do {
        uint64_t value;
        CHECK_EQ(wait_for(epoll[0], 0), 0, "nothing is ready");
        for (const char *what = "wda"; *what; what++) {
            char said;
            SYS(write(ask[1], what, 1));
            CHECK_EQ(SYS(read(answer[0], &said, 1)), 1, "answer of the child");
            CHECK_EQ(wait_for(epoll[0], 0), *what == 'd' ? 0 : 100, "the outmost");
        }
        for (int n = 0; n + 1 < DEPTH; n++)
            CHECK_EQ(wait_for(epoll[n], 0), 100 + n, "an inner one");
        CHECK_EQ(wait_for(epoll[DEPTH - 1], 0), 999, "the inmost");
        SYS(read(inmost, &value, 8));
    } while (guest_running());
    close(ask[1]);
    SYS(waitpid(child, NULL, 0));
    guest_success();
}
