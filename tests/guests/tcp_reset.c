/* The peer resets a connection while the job is elsewhere: what it sent before can be read, then
 * the job sees ECONNRESET. Another peer just closes. */
#include "tcp.h"

int main(void)
{
    char text[8];
    guest_begin();
    int broken = tcp_connect("4", 'r'), closed = tcp_connect("4", 'c');
    guest_ready();
    while (guest_running()) {
        struct pollfd p[2] = {{.fd = broken, .events = POLLIN}, {.fd = closed, .events = POLLIN}};
        CHECK(!SYS(poll(p, 2, 0)), "something came: %#x %#x", p[0].revents, p[1].revents);
    }
    tcp_say_file(".go", 1);
    tcp_read_all(broken, text, 5);
    CHECK(!memcmp(text, "last!", 5), "last words");
    CHECK(recv(broken, text, 1, 0) == -1 && errno == ECONNRESET, "no reset: %s", strerror(errno));
    CHECK_EQ(SYS(recv(broken, text, 1, 0)), 0, "end of file after the error");
    CHECK(send(broken, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "a write after the reset");
    tcp_read_all(closed, text, 5);
    CHECK_EQ(SYS(recv(closed, text, 1, 0)), 0, "end of file");
    /* Answered by a reset, which a later write tells. */
    for (int i = 0; i < 60000 && send(closed, "x", 1, MSG_NOSIGNAL) == 1; i++)
        usleep(1000);
    CHECK(errno == EPIPE || errno == ECONNRESET, "a write to a closed peer: %s", strerror(errno));
    SYS(close(broken));
    SYS(close(closed));
    guest_success();
}
