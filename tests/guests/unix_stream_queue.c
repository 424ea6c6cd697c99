/* A stream whose queue is full, of pieces of odd lengths; partly read before each move. */
#include "unix.h"

static char piece[200000], got[200000];

static void fill(char *at, size_t size, uint64_t from)
{
    for (size_t i = 0; i < size; i++)
        at[i] = (char)guest_mix(from + i);
}

int main(void)
{
    guest_begin();
    int pair[2];
    SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
    uint64_t written = 0, taken = 0, turn = 0;
    for (int ready = 0;; turn++) {
        for (;;) {
            size_t size = 1 + (size_t)(guest_mix(turn + written) % 70000);
            fill(piece, size, written);
            ssize_t n = write(pair[0], piece, size);
            if (n > 0)
                written += (uint64_t)n;
            if (n != (ssize_t)size)
                break;
        }
        if (!ready++)
            guest_ready();
        int inside;
        if (!guest_running())
            break;
        SYS(ioctl(pair[1], FIONREAD, &inside));
        CHECK_EQ(inside, written - taken, "bytes in the stream");
        size_t size = 1 + (size_t)(guest_mix(turn) % 150000);
        ssize_t n = SYS(read(pair[1], got, size));
        fill(piece, (size_t)n, taken);
        CHECK(!memcmp(piece, got, (size_t)n), "another text at %llu", (unsigned long long)taken);
        taken += (uint64_t)n;
    }
    SYS(close(pair[0]));
    for (ssize_t n; (n = SYS(read(pair[1], got, sizeof(got)))) > 0; taken += (uint64_t)n) {
        fill(piece, (size_t)n, taken);
        CHECK(!memcmp(piece, got, (size_t)n), "another text at %llu", (unsigned long long)taken);
    }
    CHECK_EQ(taken, written, "bytes in all");
    guest_success();
}
