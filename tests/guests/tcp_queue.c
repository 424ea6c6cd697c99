/* Bytes that wait in the receive queue of a connection are there at once after a move, and only
 * once. */
#include "tcp.h"

static void await_bytes(int fd, int wanted)
{
    int waiting = 0;
    for (int i = 0; i < 60000 && waiting < wanted; i++) {
        SYS(ioctl(fd, FIONREAD, &waiting));
        usleep(1000);
    }
    CHECK_EQ(waiting, wanted, "bytes that wait");
}

int main(int argc, char **argv)
{
    static unsigned char buf[5000];
    guest_begin();
    int fd = tcp_connect(argc > 1 ? argv[1] : "4", 'q');
    tcp_write_all(fd, "12345", 5);
    await_bytes(fd, 5000);
    guest_ready();
    uint64_t at = 0;
    while (guest_running()) {
        int waiting = 0;
        SYS(ioctl(fd, FIONREAD, &waiting));
        CHECK_EQ(waiting, 5000, "bytes that wait after a move");
        CHECK_EQ(SYS(recv(fd, buf, sizeof(buf), MSG_PEEK | MSG_DONTWAIT)), 5000, "peek");
        tcp_check(buf, sizeof(buf), at);
        tcp_read_all(fd, buf, 1000);
        tcp_check(buf, 1000, at);
        at += 1000;
        tcp_write_all(fd, "x", 1);
        await_bytes(fd, 5000);
    }
    tcp_finish(fd);
    guest_success();
}
