/* Packets: boundaries, empty ones, large ones, the end of the connection behind them. */
#include "unix.h"

static char large[60000], got[60000];

int main(void)
{
    guest_begin();
    int pair[2], ended[2];
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ended));
    put(ended[0], "last");
    put(ended[0], "words");
    SYS(close(ended[0]));
    guest_ready();
    uint64_t turn = 0;
    do {
        guest_fill(large, sizeof(large), ++turn);
        put(pair[0], "one");
        CHECK_EQ(send(pair[0], "", 0, 0), 0, "an empty packet");
        CHECK_EQ(send(pair[0], large, sizeof(large), 0), sizeof(large), "a large packet");
        put(pair[0], "last");
        CHECK_EQ(send(pair[0], "", 0, 0), 0, "an empty packet");
        if (!guest_running())
            break;
        want(pair[1], "one", "the first packet");
        want(pair[1], "", "the empty packet");
        CHECK_EQ(recv(pair[1], got, sizeof(got), 0), sizeof(got), "the large packet");
        guest_verify(got, sizeof(got), turn, "the large packet");
        want(pair[1], "last", "the fourth packet");
        want(pair[1], "", "the empty packet at the end");
        want_nothing(pair[1], "no more packets");
    } while (guest_running());
    want(ended[1], "last", "a packet of a closed end");
    want(ended[1], "words", "a packet of a closed end");
    CHECK_EQ(recv(ended[1], got, 1, 0), 0, "end of file");
    guest_success();
}
