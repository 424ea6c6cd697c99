/* Clients of udp_server, no part of the job: one stays and is connected, others come and go. Each sends a
 * datagram and waits for the answer, which comes from the address that it has sent to. */
#include "udp.h"

static unsigned char out[UDP_MOST], in[UDP_MOST + 1];
static unsigned port;

/* One of the server's addresses. */
static socklen_t choose(union tcp_address *to, uint32_t turn)
{
    int v6 = udp_has_word(".any6") && turn % 2;
    socklen_t len = tcp_loopback(to, v6 ? "6" : "4", port);
    if (udp_has_word(".info"))
        to->v4.sin_addr.s_addr = htonl((uint32_t)(INADDR_LOOPBACK + turn % 5));
    if (udp_has_word(".group"))
        CHECK(inet_pton(AF_INET, "239.255.77.9", &to->v4.sin_addr) == 1, "inet_pton");
    return len;
}

static int open_to(union tcp_address *to, socklen_t len, int connected)
{
    struct in_addr loopback = {htonl(INADDR_LOOPBACK)};
    int fd = udp_socket(to->any.sa_family);
    union tcp_address own;
    socklen_t own_len = tcp_loopback(&own, to->any.sa_family == AF_INET ? "4" : "6", 0);
    SYS(bind(fd, &own.any, own_len));
    if (to->any.sa_family == AF_INET)
        SYS(setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &loopback, sizeof(loopback)));
    if (connected)
        SYS(connect(fd, &to->any, len));
    return fd;
}

static void exchange(int fd, union tcp_address *to, socklen_t len, int connected, uint32_t turn)
{
    char line[80], name[64];
    union tcp_address own = {.any = {0}}, from = {.any = {0}};
    socklen_t own_len = sizeof(own), from_len = sizeof(from);
    size_t want = udp_has_word(".info") ? turn % 1400 : udp_size(turn);
    size_t size = udp_fill(out, turn, want);
    CHECK_EQ(SYS(sendto(fd, out, size, 0, connected ? NULL : &to->any, connected ? 0 : len)),
             (ssize_t)size, "length sent");
    udp_await(fd);
    SYS(getsockname(fd, &own.any, &own_len));
    int n = snprintf(line, sizeof(line), "%s\n", tcp_name(&own, name));
    ssize_t got = SYS(recvfrom(fd, in, sizeof(in), 0, &from.any, &from_len));
    CHECK(got >= n && !memcmp(in, line, (size_t)n), "the server takes %s for %.60s", line, in);
    CHECK_EQ(from.v4.sin_port, to->v4.sin_port, "port of the answer");
    if (!udp_has_word(".group"))
        CHECK(!memcmp(&from, to, len), "the answer comes from %s", tcp_name(&from, name));
    /* The largest one has no room behind the line. */
    CHECK_EQ(got, (ssize_t)(size + (size_t)n < UDP_MOST ? size + (size_t)n : UDP_MOST), "length");
    CHECK(!memcmp(in + n, out, (size_t)got - (size_t)n), "the server answers something else");
}

/* The port of a socket that the server has closed is nobody's. */
static void take_port(void)
{
    char text[32];
    union tcp_address own;
    tcp_say_file(".quiet", 1);
    tcp_await_file(".closed", text, sizeof(text));
    int fd = udp_socket(AF_INET);
    socklen_t len = tcp_loopback(&own, "4", port);
    uint64_t until = clock_ns(CLOCK_MONOTONIC) + UDP_PATIENCE * 1000000ULL;
    while (bind(fd, &own.any, len)) {
        CHECK_EQ(errno, EADDRINUSE, "bind");
        CHECK(clock_ns(CLOCK_MONOTONIC) < until, "the port is not free");
        usleep(1000);
    }
    tcp_say_file(".free", 1);
}

int main(void)
{
    char text[32];
    union tcp_address address;
    int stays = -1;
    guest_begin();
    guest_ready();
    uint32_t turn = 0;
    while (guest_running()) {
        if (!port) {
            if (!udp_has_word(""))
                continue;
            tcp_await_file("", text, sizeof(text));
            port = (unsigned)atoi(text);
        }
        if (udp_has_word(".end"))
            break;
        socklen_t len = choose(&address, 0);
        int connected = !udp_has_word(".group");
        if (stays < 0)
            stays = open_to(&address, len, connected);
        exchange(stays, &address, len, connected, turn++);
        if (udp_has_word(".end"))
            break;
        len = choose(&address, turn);
        int fd = open_to(&address, len, 0);
        exchange(fd, &address, len, 0, turn++);
        SYS(close(fd));
    }
    if (port)
        take_port();
    while (guest_running())
        ;
    guest_success();
}
