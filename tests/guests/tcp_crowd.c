/* A server with a short queue on which clients (tcp_crowders, no part of the job) rush: some are gone
 * before they are accepted, some before they are answered. Each question gets its own answer. */
#include "tcp.h"

/* A client may go at any time. */
static void answer(int fd)
{
    uint64_t question, out[2];
    size_t got = 0;
    while (got < sizeof(question)) {
        ssize_t n = recv(fd, (char *)&question + got, sizeof(question) - got, 0);
        CHECK(n >= 0 || errno == ECONNRESET, "recv: %s", strerror(errno));
        if (n <= 0)
            return;
        got += (size_t)n;
    }
    out[0] = question;
    out[1] = guest_mix(question);
    ssize_t n = send(fd, out, sizeof(out), MSG_NOSIGNAL);
    CHECK(n == sizeof(out) || errno == EPIPE || errno == ECONNRESET, "send: %s", strerror(errno));
}

int main(void)
{
    guest_begin();
    int listener = tcp_listener(8);
    guest_ready();
    do {
        struct pollfd p = {.fd = listener, .events = POLLIN};
        if (!SYS(poll(&p, 1, 100)))
            continue;
        int fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0 || errno == ECONNABORTED, "accept: %s", strerror(errno));
        if (fd < 0)
            continue;
        answer(fd);
        SYS(close(fd));
    } while (guest_running());
    tcp_say_file(".end", 1);
    guest_success();
}
