/* Streams that are shut down, closed with unread data at either side, or reset. */
#include "unix.h"

static void shut(int pair[2], const char *text)
{
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    put(pair[0], text);
}

static int events(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    SYS(poll(&p, 1, 0));
    return p.revents;
}

int main(void)
{
    guest_begin();
    int half[2], deaf[2], left[2], reset[2], dead[2], both[2], dgram[2];
    shut(half, "unread");
    SYS(shutdown(half[0], SHUT_WR));
    shut(deaf, "before");
    SYS(shutdown(deaf[1], SHUT_RD));
    shut(left, "left behind");
    SYS(close(left[0]));
    shut(reset, "never read");
    put(reset[1], "answer");
    SYS(close(reset[1]));
    shut(dead, "");
    SYS(close(dead[0]));
    shut(both, "x");
    SYS(shutdown(both[0], SHUT_RDWR));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, dgram));
    put(dgram[0], "orphan");
    SYS(close(dgram[0]));
    signal(SIGPIPE, SIG_IGN);
    guest_ready();
    do {
        CHECK_EQ(events(half[1]), POLLIN | POLLOUT | POLLRDHUP, "events behind SHUT_WR");
        CHECK(send(half[0], "x", 1, 0) == -1 && errno == EPIPE, "write behind SHUT_WR");
        put(half[1], "still");
        want(half[0], "still", "the other way of a half-closed stream");
        CHECK(send(deaf[0], "x", 1, 0) == -1 && errno == EPIPE, "write to a deaf end");
        put(deaf[1], "speaks");
        want(deaf[0], "speaks", "what a deaf end says");
        CHECK_EQ(events(left[1]), POLLIN | POLLOUT | POLLRDHUP | POLLHUP, "events of a closed one");
        CHECK(send(left[1], "x", 1, 0) == -1 && errno == EPIPE, "write to a closed one");
        CHECK(events(reset[0]) & POLLERR, "an error waits");
        CHECK_EQ(recv(dead[1], (char[1]){0}, 1, 0), 0, "end of file");
        CHECK_EQ(events(both[1]) & POLLHUP, POLLHUP, "events behind SHUT_RDWR");
    } while (guest_running());
    want(half[1], "unread", "half-closed");
    CHECK_EQ(recv(half[1], (char[1]){0}, 1, 0), 0, "end of file");
    want(deaf[1], "before", "deaf");
    want(left[1], "left behind", "closed");
    CHECK_EQ(recv(left[1], (char[1]){0}, 1, 0), 0, "end of file");
    want(reset[0], "answer", "before the reset");
    CHECK(recv(reset[0], (char[1]){0}, 1, 0) == -1 && errno == ECONNRESET, "no ECONNRESET");
    CHECK_EQ(option(reset[0], SO_ERROR), 0, "an error twice");
    want(both[1], "x", "shut down");
    want(dgram[1], "orphan", "the message of a dead one");
    CHECK(send(dgram[1], "x", 1, 0) == -1 && errno == ECONNREFUSED, "a dead peer: %s",
          strerror(errno));
    CHECK(send(dgram[1], "x", 1, 0) == -1 && errno == ENOTCONN, "no peer: %s", strerror(errno));
    guest_success();
}
