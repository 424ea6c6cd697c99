/*
 * What guests with UDP sockets share. The program at the other end is no part of the job.
 *
 * A datagram is a number of four bytes and then the pattern from that offset on (tcp.h). No datagram is
 * ever sent again: one that is lost is a failure, for no queue is ever full.
 */
#ifndef UDP_H
#define UDP_H
#include "tcp.h"

enum { UDP_NUMBER = 4, UDP_MOST = 65507 };

/* Has the peer send so many datagrams, numbered from zero, of at most so many bytes besides, from its two
 * ports in turns. */
#define UDP_REQUEST "send me"
struct udp_request {
    char word[sizeof(UDP_REQUEST)];
    uint32_t count, most;
};

/* So long an answer may take, milliseconds. */
enum { UDP_PATIENCE = 60000 };

static inline size_t udp_fill(unsigned char *to, uint32_t number, size_t size)
{
    memcpy(to, &number, UDP_NUMBER);
    tcp_pattern(to + UDP_NUMBER, size, number);
    return UDP_NUMBER + size;
}

static inline uint32_t udp_check(const unsigned char *got, ssize_t size, size_t want)
{
    uint32_t number;
    CHECK_EQ(size, (ssize_t)(UDP_NUMBER + want), "length of a datagram");
    memcpy(&number, got, UDP_NUMBER);
    tcp_check(got + UDP_NUMBER, want, number);
    return number;
}

/* Sizes of all kinds, the largest one among them. */
static inline size_t udp_size(uint32_t number)
{
    switch (number % 16) {
    case 0: return 0;
    case 5: return UDP_MOST - UDP_NUMBER;
    case 9: return 1 + guest_mix(number) % 20000;
    default: return 1 + guest_mix(number) % 1400;
    }
}

static inline void udp_await(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK_EQ(SYS(poll(&p, 1, UDP_PATIENCE)), 1, "a datagram in time");
}

static inline int udp_socket(int family)
{
    int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 && family == AF_INET6)
        skip("no IPv6");
    return SYS(fd);
}

static inline int udp_has_word(const char *suffix)
{
    char path[512];
    snprintf(path, sizeof(path), "%s%s", guest_env("GUEST_MEET"), suffix);
    return access(path, F_OK) == 0;
}
#endif
