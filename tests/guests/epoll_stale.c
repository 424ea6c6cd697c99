/* Entries by numbers that are closed or used for something else since, while another descriptor
 * keeps what they watch: they go on, and cannot be removed by their old numbers. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int epoll;

static uint64_t ready(void)
{
    struct epoll_event events[8];
    uint64_t all = 0;
    for (int n = SYS(epoll_wait(epoll, events, 8, 0)); n > 0; n--)
        all |= events[n - 1].data.u64;
    return all;
}

static void watch(int fd, uint64_t data)
{
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd,
                  &(struct epoll_event){.events = EPOLLIN, .data.u64 = data}));
}

int main(void)
{
    guest_begin();
    epoll = SYS(epoll_create1(0));
    int closed = SYS(eventfd(0, EFD_NONBLOCK)), reused = SYS(eventfd(0, EFD_NONBLOCK));
    int of_closed = SYS(fcntl(closed, F_DUPFD, 90)), of_reused = SYS(fcntl(reused, F_DUPFD, 95));
    watch(closed, 1);
    watch(reused, 2);
    SYS(close(closed));
    int other = SYS(eventfd(0, EFD_NONBLOCK));
    SYS(dup2(other, reused));
    SYS(close(other));
    /* The same number once more, for another description. */
    watch(reused, 4);
    guest_ready();
    do {
        int fds[3] = {of_closed, of_reused, reused};
        uint64_t value = 1;
        CHECK_EQ(ready(), 0, "nothing is ready");
        for (int n = 0; n < 3; n++) {
            SYS(write(fds[n], &value, 8));
            CHECK_EQ(ready(), 1 << n, "ready");
            SYS(read(fds[n], &value, 8));
        }
        int gone = epoll_ctl(epoll, EPOLL_CTL_DEL, closed, NULL);
        CHECK(gone == -1 && errno == EBADF, "removed by a closed number");
    } while (guest_running());
    guest_success();
}
