/* epoll: data, edge-triggered, one-shot (disarmed and armed), nested, duplicates of the epoll
 * and of its targets. With the argument `closed-target` one target is registered,
 * duplicated, and then closed under the number it was registered with: the duplicate keeps
 * the registration alive. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static void add(int epoll, int fd, uint32_t events, uint64_t data)
{
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = events, .data.u64 = data}));
}

/* What is ready, as the bitwise or of the data; each data word is one bit. */
static uint64_t ready(int epoll)
{
    struct epoll_event events[16];
    int n = SYS(epoll_wait(epoll, events, 16, 0));
    uint64_t bits = 0;
    for (int i = 0; i < n; i++)
        bits |= events[i].data.u64;
    return bits;
}

static void signal_event(int fd)
{
    uint64_t one = 1;
    CHECK_EQ(write(fd, &one, 8), 8, "write to an eventfd");
}

static void drain(int fd)
{
    uint64_t n;
    CHECK(read(fd, &n, 8) == 8, "read of an eventfd: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    guest_begin();
    int closes = argc > 1 && !strcmp(argv[1], "closed-target");
    uint64_t always = closes ? 16 : 0;
    int epoll = SYS(epoll_create1(EPOLL_CLOEXEC)), inner = SYS(epoll_create1(0));
    int level = SYS(eventfd(0, EFD_NONBLOCK)), edge = SYS(eventfd(0, EFD_NONBLOCK));
    int once = SYS(eventfd(0, EFD_NONBLOCK)), nested = SYS(eventfd(0, EFD_NONBLOCK));
    int gone = SYS(eventfd(5, EFD_NONBLOCK)), twin = SYS(dup(epoll));
    add(epoll, level, EPOLLIN, 1);
    add(epoll, edge, EPOLLIN | EPOLLET, 2);
    add(epoll, once, EPOLLIN | EPOLLONESHOT, 4);
    add(epoll, inner, EPOLLIN, 8);
    add(inner, nested, EPOLLIN, 0xfedcba9876543210ULL);
    if (closes)
        add(epoll, gone, EPOLLIN, 16);
    int kept = SYS(fcntl(gone, F_DUPFD, 90));
    SYS(close(gone));
    CHECK_EQ(ready(epoll), always, "ready at the start");
    guest_ready();
    do {
        CHECK_EQ(ready(epoll) & ~2ULL, always, "ready with nothing due");
        signal_event(level);
        signal_event(edge);
        signal_event(once);
        signal_event(nested);
        CHECK_EQ(ready(twin), 15 | always, "ready with all due");
        CHECK_EQ(ready(inner), 0xfedcba9876543210ULL, "data of the inner epoll");
        if (!guest_running())
            break;
        /* An edge may be told again by a move, never lost; a shot never comes again. */
        CHECK_EQ(ready(epoll) & ~2ULL, 9 | always, "ready after the edge and the shot");
        drain(edge);
        signal_event(edge);
        CHECK(ready(epoll) & 2, "a new edge is lost");
        SYS(epoll_ctl(epoll, EPOLL_CTL_MOD, once,
                      &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 4}));
        CHECK_EQ(ready(epoll) & 4, 4, "the re-armed shot");
        drain(level), drain(edge), drain(once), drain(nested);
        SYS(epoll_ctl(epoll, EPOLL_CTL_MOD, once,
                      &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 4}));
        CHECK_EQ(SYS(fcntl(epoll, F_GETFD)), FD_CLOEXEC, "close-on-exec");
    } while (guest_running());
    SYS(close(kept));
    CHECK_EQ(ready(epoll) & 16, 0, "the closed target is still there");
    guest_success();
}
