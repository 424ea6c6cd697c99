/* Addresses, options and flags of TCP connections stay as they are, and the connection answers. The
 * argument is the family (tcp.h). */
#include "tcp.h"
#include <sys/epoll.h>

static const struct {
    int level, option, value;
} OPTIONS[] = {
    {IPPROTO_TCP, TCP_NODELAY, 1}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 123},
    {IPPROTO_TCP, TCP_KEEPINTVL, 45}, {IPPROTO_TCP, TCP_KEEPCNT, 6},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 70000}, {IPPROTO_TCP, TCP_LINGER2, 8},
    {IPPROTO_TCP, TCP_SYNCNT, 3}, {IPPROTO_IP, IP_TOS, 0x10}, {IPPROTO_IP, IP_TTL, 55},
    {SOL_SOCKET, SO_OOBINLINE, 1}, {SOL_SOCKET, SO_RCVLOWAT, 1}, {SOL_SOCKET, SO_PRIORITY, 4},
    {IPPROTO_TCP, TCP_NOTSENT_LOWAT, 100000},
};

static int value_of(int fd, int level, int option)
{
    int value = 0;
    socklen_t len = sizeof(value);
    SYS(getsockopt(fd, level, option, &value, &len));
    return value;
}

static union tcp_address own, peer;
static int sizes[2];

static void look(int fd, union tcp_address *name, int (*ask)(int, struct sockaddr *, socklen_t *))
{
    socklen_t len = sizeof(*name);
    memset(name, 0, sizeof(*name));
    SYS(ask(fd, &name->any, &len));
}

static void check(int fd)
{
    union tcp_address now;
    look(fd, &now, getsockname);
    CHECK(!memcmp(&now, &own, sizeof(now)), "getsockname tells another address");
    look(fd, &now, getpeername);
    CHECK(!memcmp(&now, &peer, sizeof(now)), "getpeername tells another address");
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        CHECK_EQ(value_of(fd, OPTIONS[i].level, OPTIONS[i].option), OPTIONS[i].value, "option");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_SNDBUF), sizes[0], "SO_SNDBUF");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_RCVBUF), sizes[1], "SO_RCVBUF");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_ERROR), 0, "SO_ERROR");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_TYPE), SOCK_STREAM, "SO_TYPE");
    char name[32] = "";
    socklen_t len = sizeof(name);
    SYS(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len));
    CHECK(!strcmp(name, "reno"), "congestion control %s", name);
    struct linger linger;
    len = sizeof(linger);
    SYS(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len));
    CHECK(linger.l_onoff == 1 && linger.l_linger == 7, "SO_LINGER");
    struct timeval timeout;
    len = sizeof(timeout);
    SYS(getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, &len));
    CHECK_EQ(timeout.tv_sec, 90, "SO_RCVTIMEO");
    CHECK(SYS(fcntl(fd, F_GETFL)) & O_NONBLOCK, "O_NONBLOCK");
    CHECK(SYS(fcntl(fd, F_GETFD)) & FD_CLOEXEC, "FD_CLOEXEC");
}

int main(int argc, char **argv)
{
    const char *family = argc > 1 ? argv[1] : "4";
    guest_begin();
    int fd = tcp_connect(family, 'e');
    int size = 50000;
    struct linger linger = {1, 7};
    struct timeval timeout = {.tv_sec = 90};
    SYS(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)));
    SYS(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)));
    SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
    SYS(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
    SYS(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        SYS(setsockopt(fd, OPTIONS[i].level, OPTIONS[i].option, &OPTIONS[i].value, sizeof(int)));
    SYS(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK));
    look(fd, &own, getsockname);
    look(fd, &peer, getpeername);
    sizes[0] = value_of(fd, SOL_SOCKET, SO_SNDBUF);
    sizes[1] = value_of(fd, SOL_SOCKET, SO_RCVBUF);
    int epoll = SYS(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 42};
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    guest_ready();
    unsigned char turn = 0;
    do {
        unsigned char got[2];
        check(fd);
        turn++;
        tcp_write_all(fd, &turn, 1);
        CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, 60000)), 1, "an answer in time");
        CHECK_EQ(event.data.u64, 42, "data of the event");
        CHECK_EQ(SYS(recv(fd, got, sizeof(got), 0)), 1, "length of the answer");
        CHECK_EQ(got[0], turn, "answer");
        CHECK(recv(fd, got, sizeof(got), 0) == -1 && errno == EAGAIN, "a second answer");
    } while (guest_running());
    SYS(close(fd));
    guest_success();
}
