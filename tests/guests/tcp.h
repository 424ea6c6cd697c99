/*
 * What guests with TCP connections share. The program at the other end, tcp_peer, is no part of
 * the job. It writes its port into the file GUEST_MEET, and does with each connection what the
 * first byte says:
 *
 *   e  sends back whatever comes
 *   i  the same with all bits inverted
 *   s  sends a pattern for ever, and checks the same pattern in what comes
 *   k  the same, and goes on after the end of file until the connection is closed
 *   q  sends 1000 bytes of the pattern for each byte that comes
 *   w  reads nothing until GUEST_MEET.go is there, then as `s` without sending
 *   r  when GUEST_MEET.go is there: sends 5 bytes, and resets the connection
 *   h  sends 30000 bytes of the pattern and its end of file, then as `s` without sending
 *   c  when GUEST_MEET.go is there: sends 5 bytes and closes
 *
 * The byte at an offset of the pattern is that of guest_mix().
 */
#ifndef TCP_H
#define TCP_H
/* The link to the other end may be cut for a while. */
#define MAX_CLOCK_JUMP_NS (40 * NS_PER_S)
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

static inline unsigned char tcp_byte(uint64_t offset)
{
    return (unsigned char)(guest_mix(offset / 8) >> (offset % 8 * 8));
}

static inline void tcp_pattern(unsigned char *to, size_t size, uint64_t offset)
{
    for (size_t i = 0; i < size; i++)
        to[i] = tcp_byte(offset + i);
}

static inline void tcp_check(const unsigned char *got, size_t size, uint64_t offset)
{
    for (size_t i = 0; i < size; i++)
        CHECK(got[i] == tcp_byte(offset + i), "byte %llu of the stream is %#x, not %#x",
              (unsigned long long)(offset + i), got[i], tcp_byte(offset + i));
}

static inline void tcp_write_all(int fd, const void *bytes, size_t size)
{
    for (size_t done = 0; done < size;)
        done += (size_t)SYS(send(fd, (const char *)bytes + done, size - done, MSG_NOSIGNAL));
}

static inline void tcp_read_all(int fd, void *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = SYS(recv(fd, (char *)to + done, size - done, 0));
        CHECK(n, "end of file after %zu of %zu bytes", done, size);
        done += (size_t)n;
    }
}

/* Waits for the peer's word. */
static inline void tcp_await_file(const char *suffix, char *text, size_t size)
{
    char path[512];
    snprintf(path, sizeof(path), "%s%s", guest_env("GUEST_MEET"), suffix);
    for (;;) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            ssize_t n = SYS(read(fd, text, size - 1));
            SYS(close(fd));
            text[n] = 0;
            if (strchr(text, '\n'))
                return;
        }
        usleep(1000);
    }
}

static inline void tcp_say_file(const char *suffix, unsigned value)
{
    char path[512], text[32];
    snprintf(path, sizeof(path), "%s%s", guest_env("GUEST_MEET"), suffix);
    int fd = SYS(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
    int n = snprintf(text, sizeof(text), "%u\n", value);
    CHECK_EQ(write(fd, text, (size_t)n), n, "write to the meeting point");
    SYS(close(fd));
}

union tcp_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
};

/* Loopback with this port; FAMILY is "4", "6" or "mapped" (v4 in a v6 socket). */
static inline socklen_t tcp_loopback(union tcp_address *to, const char *family, unsigned port)
{
    memset(to, 0, sizeof(*to));
    if (!strcmp(family, "4")) {
        to->v4.sin_family = AF_INET;
        to->v4.sin_port = htons((uint16_t)port);
        to->v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return sizeof(to->v4);
    }
    to->v6.sin6_family = AF_INET6;
    to->v6.sin6_port = htons((uint16_t)port);
    const char *text = strcmp(family, "6") ? "::ffff:127.0.0.1" : "::1";
    CHECK(inet_pton(AF_INET6, text, &to->v6.sin6_addr) == 1, "inet_pton");
    return sizeof(to->v6);
}

/* An address and its port in words, v4 as v4-mapped; TO has 64 bytes. */
static inline const char *tcp_name(const union tcp_address *of, char *to)
{
    struct in6_addr address = of->v6.sin6_addr;
    if (of->any.sa_family == AF_INET) {
        memset(&address, 0, sizeof(address));
        address.s6_addr[10] = address.s6_addr[11] = 0xff;
        memcpy(&address.s6_addr[12], &of->v4.sin_addr, 4);
    }
    CHECK(inet_ntop(AF_INET6, &address, to, 48), "inet_ntop");
    /* The port is at the same place in both. */
    snprintf(to + strlen(to), 16, " %u", ntohs(of->v4.sin_port));
    return to;
}

/* A connection to the peer that does what WHAT says. */
static inline int tcp_connect(const char *family, char what)
{
    char text[32];
    union tcp_address address;
    tcp_await_file("", text, sizeof(text));
    socklen_t len = tcp_loopback(&address, family, (unsigned)atoi(text));
    int fd = SYS(socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    SYS(connect(fd, &address.any, len));
    if (what)
        tcp_write_all(fd, &what, 1);
    return fd;
}

/* What the peer sees of it in the end is what was sent. */
static inline void tcp_finish(int fd)
{
    SYS(shutdown(fd, SHUT_WR));
    char byte;
    while (SYS(recv(fd, &byte, 1, 0)) > 0)
        ;
    SYS(close(fd));
}

/* A socket that listens at a port of 127.0.0.1, which its clients find in the file GUEST_MEET. */
static inline int tcp_listener(int backlog)
{
    int listener = SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    union tcp_address own;
    socklen_t len = tcp_loopback(&own, "4", 0);
    SYS(bind(listener, &own.any, len));
    SYS(listen(listener, backlog));
    SYS(getsockname(listener, &own.any, &len));
    tcp_say_file("", ntohs(own.v4.sin_port));
    return listener;
}
#endif
