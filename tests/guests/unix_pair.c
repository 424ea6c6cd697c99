/* Socket pairs of all three types: bytes both ways, boundaries, options, shared flags. */
#include "unix.h"

int main(void)
{
    guest_begin();
    int pairs[3][2], types[3] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int send_buffer[3];
    struct timeval wait = {3, 500000}, got;
    struct linger linger = {1, 7};
    for (int i = 0; i < 3; i++) {
        SYS(socketpair(AF_UNIX, types[i] | SOCK_CLOEXEC, 0, pairs[i]));
        set_option(pairs[i][0], SO_SNDBUF, 30000 + i);
        send_buffer[i] = option(pairs[i][0], SO_SNDBUF);
        SYS(setsockopt(pairs[i][1], SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)));
        SYS(setsockopt(pairs[i][1], SOL_SOCKET, SO_LINGER, &linger, sizeof(linger)));
        set_option(pairs[i][1], SO_PASSSEC, 1);
        set_option(pairs[i][1], SO_PASSCRED, i == 0);
        SYS(fcntl(pairs[i][1], F_SETFL, O_NONBLOCK));
    }
    int twin = SYS(fcntl(pairs[0][0], F_DUPFD, 70));
    guest_ready();
    do {
        for (int i = 0; i < 3; i++) {
            int one = pairs[i][0], other = pairs[i][1];
            CHECK_EQ(option(one, SO_TYPE), types[i], "type");
            CHECK_EQ(option(one, SO_SNDBUF), send_buffer[i], "SO_SNDBUF");
            socklen_t size = sizeof(got);
            SYS(getsockopt(other, SOL_SOCKET, SO_RCVTIMEO, &got, &size));
            CHECK(got.tv_sec == 3 && got.tv_usec == 500000, "SO_RCVTIMEO");
            struct linger lingers;
            size = sizeof(lingers);
            SYS(getsockopt(other, SOL_SOCKET, SO_LINGER, &lingers, &size));
            CHECK(lingers.l_onoff == 1 && lingers.l_linger == 7, "SO_LINGER");
            CHECK_EQ(option(other, SO_PASSSEC), 1, "SO_PASSSEC");
            CHECK_EQ(option(other, SO_PASSCRED), i == 0, "SO_PASSCRED");
            CHECK_EQ(SYS(fcntl(one, F_GETFD)), FD_CLOEXEC, "close-on-exec");
            CHECK_EQ(SYS(fcntl(one, F_GETFL)) & O_NONBLOCK, 0, "O_NONBLOCK of one end");
            CHECK_EQ(SYS(fcntl(other, F_GETFL)) & O_NONBLOCK, O_NONBLOCK, "O_NONBLOCK");
            put(one, "forth");
            put(one, "more");
            put(other, "back");
        }
        put(twin, "!");
        /* Each read takes from it. */
        set_option(pairs[0][0], SO_PEEK_OFF, 2);
        if (!guest_running())
            break;
        CHECK_EQ(option(pairs[0][0], SO_PEEK_OFF), 2, "SO_PEEK_OFF");
        CHECK_EQ(option(pairs[1][0], SO_PEEK_OFF), -1, "SO_PEEK_OFF that is off");
        want(pairs[0][1], "forthmore!", "the stream");
        want(pairs[0][0], "back", "the stream, back");
        for (int i = 1; i < 3; i++) {
            want(pairs[i][1], "forth", "the first message");
            want(pairs[i][1], "more", "the second message");
            want_nothing(pairs[i][1], "no third message");
            want(pairs[i][0], "back", "the message back");
        }
        CHECK_EQ(recv(twin, (char[1]){0}, 1, MSG_DONTWAIT), -1, "a stream that is empty");
    } while (guest_running());
    guest_success();
}
