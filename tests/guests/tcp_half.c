/* TCP connections that are shut down on one side. */
#include "tcp.h"

static unsigned char buf[30000];

int main(void)
{
    guest_begin();
    /* The peer has sent its end of file; half of what came before it was read. */
    int ended = tcp_connect("4", 'h');
    tcp_read_all(ended, buf, sizeof(buf) / 2);
    tcp_check(buf, sizeof(buf) / 2, 0);
    /* The same, read to its end. */
    int over = tcp_connect("4", 'h');
    tcp_read_all(over, buf, sizeof(buf));
    tcp_check(buf, sizeof(buf), 0);
    CHECK_EQ(SYS(recv(over, buf, 1, 0)), 0, "end of file");
    /* Nothing more can be sent to this one, which goes on sending. */
    int mute = tcp_connect("4", 'w');
    SYS(shutdown(mute, SHUT_WR));
    /* Nothing is read from this one. */
    int deaf = tcp_connect("4", 'e');
    SYS(shutdown(deaf, SHUT_RD));
    guest_ready();
    uint64_t sent = 0;
    while (guest_running()) {
        unsigned char byte[100];
        CHECK_EQ(SYS(recv(over, byte, 1, MSG_DONTWAIT)), 0, "end of file after a move");
        CHECK_EQ(SYS(recv(deaf, byte, 1, MSG_DONTWAIT)), 0, "end of file of what is shut");
        CHECK(send(mute, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "a write to what is shut");
        struct pollfd p = {.fd = mute, .events = POLLIN};
        CHECK(SYS(poll(&p, 1, 0)) == 0, "something came: %#x", p.revents);
        tcp_pattern(byte, sizeof(byte), sent);
        tcp_write_all(over, byte, sizeof(byte));
        tcp_write_all(ended, byte, sizeof(byte));
        sent += sizeof(byte);
        p.fd = ended;
        CHECK_EQ(SYS(poll(&p, 1, 60000)), 1, "what waits");
    }
    tcp_say_file(".go", 1);
    tcp_read_all(ended, buf, sizeof(buf) / 2);
    tcp_check(buf, sizeof(buf) / 2, sizeof(buf) / 2);
    CHECK_EQ(SYS(recv(ended, buf, 1, 0)), 0, "end of file");
    CHECK_EQ(SYS(recv(mute, buf, 1, 0)), 0, "end of file of the mute one");
    SYS(close(ended));
    SYS(close(over));
    SYS(close(mute));
    SYS(close(deaf));
    guest_success();
}
