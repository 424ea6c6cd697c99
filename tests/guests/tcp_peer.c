/* The other end of connections, no part of a job: see tcp.h. */
#include "tcp.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static void await_go(void)
{
    char text[32];
    tcp_await_file(".go", text, sizeof(text));
}

/* Reads to the end of file, and checks every byte. */
static void check_all(int fd)
{
    static unsigned char buf[65536];
    uint64_t at = 0;
    ssize_t n;
    while ((n = SYS(recv(fd, buf, sizeof(buf), 0))) > 0) {
        tcp_check(buf, (size_t)n, at);
        at += (uint64_t)n;
    }
}

static void echo(int fd, unsigned char change)
{
    static unsigned char buf[65536];
    ssize_t n;
    while ((n = SYS(recv(fd, buf, sizeof(buf), 0))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            buf[i] ^= change;
        tcp_write_all(fd, buf, (size_t)n);
    }
}

static void answer(int fd)
{
    static unsigned char buf[1000];
    uint64_t at = 0;
    char byte;
    while (SYS(recv(fd, &byte, 1, 0)) > 0) {
        tcp_pattern(buf, sizeof(buf), at);
        tcp_write_all(fd, buf, sizeof(buf));
        at += sizeof(buf);
    }
}

/* With `on`, its own bytes go on after the end of file. */
static void stream(int fd, int on)
{
    static unsigned char in[65536], out[20000];
    uint64_t got = 0, sent = 0;
    size_t ready = 0, done = 0;
    int ended = 0;
    for (;;) {
        struct pollfd p = {.fd = fd, .events = ended ? POLLOUT : POLLIN | POLLOUT};
        SYS(poll(&p, 1, -1));
        if (ended && p.revents & (POLLHUP | POLLERR))
            return;
        if (!ended && p.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t n = SYS(recv(fd, in, sizeof(in), 0));
            if (!n && !on)
                return;
            ended = !n;
            tcp_check(in, (size_t)n, got);
            got += (uint64_t)n;
        }
        if (p.revents & POLLOUT) {
            if (done == ready) {
                ready = 1 + guest_mix(sent) % sizeof(out);
                tcp_pattern(out, ready, sent);
                done = 0;
                usleep(1000);
            }
            ssize_t n = send(fd, out + done, ready - done, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n < 0 && ended)
                return;
            CHECK(n >= 0, "send: %s", strerror(errno));
            done += (size_t)n;
            sent += (uint64_t)n;
        }
    }
}

static void half_close(int fd)
{
    static unsigned char buf[30000];
    tcp_pattern(buf, sizeof(buf), 0);
    tcp_write_all(fd, buf, sizeof(buf));
    SYS(shutdown(fd, SHUT_WR));
    check_all(fd);
}

static void reset(int fd)
{
    struct linger now = {1, 0};
    await_go();
    tcp_write_all(fd, "last!", 5);
    usleep(20000);
    SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
}

static void serve(int fd)
{
    char what;
    if (SYS(recv(fd, &what, 1, 0)) == 0)
        return;
    switch (what) {
    case 'e': echo(fd, 0); break;
    case 'i': echo(fd, 0xff); break;
    case 's': stream(fd, 0); break;
    case 'k': stream(fd, 1); break;
    case 'q': answer(fd); break;
    case 'w': await_go(); check_all(fd); break;
    case 'r': reset(fd); break;
    case 'h': half_close(fd); break;
    case 'c': await_go(); tcp_write_all(fd, "last!", 5); break;
    default: fail("a connection begins with %#x", what);
    }
    SYS(close(fd));
}

int main(void)
{
    int one = 1, zero = 0;
    guest_begin();
    int listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0)
        skip("no IPv6");
    struct sockaddr_in6 any = {.sin6_family = AF_INET6};
    SYS(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
    SYS(setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)));
    SYS(bind(listener, (struct sockaddr *)&any, sizeof(any)));
    SYS(listen(listener, 64));
    socklen_t len = sizeof(any);
    SYS(getsockname(listener, (struct sockaddr *)&any, &len));
    tcp_say_file("", ntohs(any.sin6_port));
    guest_ready();
    int children = 0;
    while (guest_running()) {
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0) {
            pid_t child = SYS(fork());
            if (!child) {
                SYS(prctl(PR_SET_PDEATHSIG, SIGKILL));
                serve(fd);
                _exit(0);
            }
            children++;
            SYS(close(fd));
        }
    }
    /* The guest has ended, and every connection with it. */
    for (int status; children; children--) {
        SYS(wait(&status));
        CHECK(WIFEXITED(status) && !WEXITSTATUS(status), "a connection ended with %#x", status);
    }
    guest_success();
}
