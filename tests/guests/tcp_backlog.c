/* Connections that nobody has accepted wait through the moves, with what their clients
 * (tcp_callers, no part of the job) have sent, in their order. */
#include "tcp.h"

enum { CALLERS = 5, LENGTH = 3000 };

static unsigned waiting(int listener)
{
    struct tcp_info info;
    socklen_t len = sizeof(info);
    SYS(getsockopt(listener, IPPROTO_TCP, TCP_INFO, &info, &len));
    return info.tcpi_unacked;
}

int main(void)
{
    static unsigned char buf[LENGTH];
    guest_begin();
    int listener = tcp_listener(16);
    while (waiting(listener) < CALLERS)
        usleep(1000);
    guest_ready();
    while (guest_running())
        CHECK(waiting(listener) <= CALLERS, "%u connections wait", waiting(listener));
    for (unsigned i = 0; i < CALLERS; i++) {
        int fd = SYS(accept(listener, NULL, NULL));
        tcp_read_all(fd, buf, LENGTH);
        CHECK_EQ(buf[0], i, "number of the caller");
        tcp_check(buf + 1, LENGTH - 1, i);
        tcp_write_all(fd, buf, LENGTH);
        char byte;
        CHECK_EQ(SYS(recv(fd, &byte, 1, 0)), 0, "end of file");
        SYS(close(fd));
    }
    guest_success();
}
