/* Addresses, options and flags of a connected UDP socket stay as they are, and of one that talks to two
 * others. The argument is the family (tcp.h). */
#include "udp.h"
#include <sys/epoll.h>

static const struct {
    int level, option, value;
} OPTIONS[] = {
    {IPPROTO_IP, IP_TOS, 0x10}, {IPPROTO_IP, IP_TTL, 55}, {IPPROTO_IP, IP_RECVTTL, 1},
    {SOL_SOCKET, SO_BROADCAST, 1}, {SOL_SOCKET, SO_PRIORITY, 4}, {IPPROTO_IP, IP_MULTICAST_TTL, 3},
    {IPPROTO_IP, IP_RECVERR, 1}, {SOL_SOCKET, SO_RXQ_OVFL, 1}, {IPPROTO_IP, IP_MTU_DISCOVER, 0},
};

static int value_of(int fd, int level, int option)
{
    int value = 0;
    socklen_t len = sizeof(value);
    SYS(getsockopt(fd, level, option, &value, &len));
    return value;
}

static void look(int fd, union tcp_address *name, int (*ask)(int, struct sockaddr *, socklen_t *))
{
    socklen_t len = sizeof(*name);
    memset(name, 0, sizeof(*name));
    SYS(ask(fd, &name->any, &len));
}

static union tcp_address own, peers[2];
static socklen_t peer_len;
static int size;

static void check(int fd)
{
    union tcp_address now;
    look(fd, &now, getsockname);
    CHECK(!memcmp(&now, &own, sizeof(now)), "getsockname tells another address");
    look(fd, &now, getpeername);
    CHECK(!memcmp(&now, &peers[0], sizeof(now)), "getpeername tells another address");
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        CHECK_EQ(value_of(fd, OPTIONS[i].level, OPTIONS[i].option), OPTIONS[i].value, "option");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_RCVBUF), size, "SO_RCVBUF");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_ERROR), 0, "SO_ERROR");
    CHECK_EQ(value_of(fd, SOL_SOCKET, SO_TYPE), SOCK_DGRAM, "SO_TYPE");
    CHECK(SYS(fcntl(fd, F_GETFL)) & O_NONBLOCK, "O_NONBLOCK");
}

/* What comes is the echo, from whom it was sent to. */
static void expect(int fd, const unsigned char *sent, size_t len, const union tcp_address *from)
{
    static unsigned char got[UDP_MOST];
    union tcp_address sender = {.any = {0}};
    socklen_t sender_len = sizeof(sender);
    udp_await(fd);
    ssize_t n = SYS(recvfrom(fd, got, sizeof(got), 0, &sender.any, &sender_len));
    CHECK_EQ(n, (ssize_t)len, "length of the echo");
    CHECK(!memcmp(got, sent, len), "another echo");
    CHECK(!memcmp(&sender, from, peer_len), "another sender");
}

int main(int argc, char **argv)
{
    static unsigned char out[UDP_MOST];
    const char *family = argc > 1 ? argv[1] : "4";
    char text[32];
    guest_begin();
    tcp_await_file("", text, sizeof(text));
    for (int i = 0; i < 2; i++) {
        tcp_await_file(i ? ".other" : ".one", text, sizeof(text));
        peer_len = tcp_loopback(&peers[i], family, (unsigned)atoi(text));
    }
    int fd = udp_socket(peers[0].any.sa_family), free_one = udp_socket(peers[0].any.sa_family);
    size = 150000;
    SYS(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)));
    for (size_t i = 0; i < COUNT(OPTIONS); i++)
        SYS(setsockopt(fd, OPTIONS[i].level, OPTIONS[i].option, &OPTIONS[i].value, sizeof(int)));
    size = value_of(fd, SOL_SOCKET, SO_RCVBUF);
    SYS(connect(fd, &peers[0].any, peer_len));
    SYS(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK));
    look(fd, &own, getsockname);
    /* It has an address from the first datagram on. */
    SYS(sendto(free_one, "first", 5, 0, &peers[0].any, peer_len));
    expect(free_one, (const unsigned char *)"first", 5, &peers[0]);
    int epoll = SYS(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 42};
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    guest_ready();
    uint32_t turn = 0;
    do {
        check(fd);
        size_t len = udp_fill(out, turn, udp_size(turn));
        CHECK_EQ(SYS(send(fd, out, len, 0)), (ssize_t)len, "length sent");
        CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, UDP_PATIENCE)), 1, "an answer in time");
        CHECK_EQ(event.data.u64, 42, "data of the event");
        expect(fd, out, len, &peers[0]);
        CHECK(recv(fd, out, 1, 0) == -1 && errno == EAGAIN, "a second answer");
        for (int i = 0; i < 2; i++) {
            len = udp_fill(out, turn + (uint32_t)i, 100);
            SYS(sendto(free_one, out, len, 0, &peers[i].any, peer_len));
            expect(free_one, out, len, &peers[i]);
        }
        turn++;
    } while (guest_running());
    SYS(close(fd));
    guest_success();
}
