/* A pipe in packet mode between two processes: boundaries stay, of packets in flight as well. */
#include "guest.h"
#include <sys/wait.h>

enum { HELD = 5 };

static size_t size_of(unsigned n)
{
    return 1 + n * 37 % 500;
}

int main(void)
{
    guest_begin();
    int ends[2], ask[2];
    SYS(pipe2(ends, O_DIRECT));
    SYS(pipe(ask));
    pid_t child = SYS(fork());
    if (child == 0) {
        unsigned char packet[512];
        char what;
        close(ends[0]);
        close(ask[1]);
        for (unsigned n = 0; SYS(read(ask[0], &what, 1)) == 1; n++) {
            memset(packet, (int)n, sizeof(packet));
            CHECK_EQ(SYS(write(ends[1], packet, size_of(n))), size_of(n), "write");
        }
        _exit(0);
    }
    close(ends[1]);
    for (int n = 0; n < HELD; n++)
        SYS(write(ask[1], "x", 1));
    guest_ready();
    unsigned n = 0;
    do {
        unsigned char packet[512];
        SYS(write(ask[1], "x", 1));
        CHECK_EQ(SYS(read(ends[0], packet, sizeof(packet))), size_of(n), "size of a packet");
        CHECK_EQ(packet[0], (unsigned char)n, "content of a packet");
        CHECK_EQ(packet[size_of(n) - 1], (unsigned char)n, "content of a packet");
        n++;
    } while (guest_running());
    close(ask[1]);
    SYS(waitpid(child, NULL, 0));
    guest_success();
}
