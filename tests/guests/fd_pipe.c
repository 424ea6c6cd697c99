/* Pipes with bytes inside, odd capacity, both ends here, duplicates, packets, an end closed. */
#include "guest.h"
#include <poll.h>
#include <sys/ioctl.h>

static void expect(int fd, const char *want)
{
    char got[64];
    size_t size = strlen(want);
    CHECK_EQ(read(fd, got, size), size, "bytes in a pipe");
    CHECK(!memcmp(got, want, size), "a pipe held %.*s, wanted %s", (int)size, got, want);
}

int main(void)
{
    guest_begin();
    int plain[2], packets[2], hung[2], broken[2], full[2];
    SYS(pipe2(plain, O_CLOEXEC));
    SYS(pipe2(packets, O_DIRECT | O_NONBLOCK));
    SYS(pipe(hung));
    SYS(pipe(broken));
    SYS(pipe2(full, O_NONBLOCK));
    int twin = SYS(fcntl(plain[1], F_DUPFD, 60));
    SYS(fcntl(plain[1], F_SETPIPE_SZ, 16384));
    int capacity = SYS(fcntl(plain[0], F_GETPIPE_SZ));
    CHECK_EQ(write(hung[1], "left", 4), 4, "write");
    SYS(close(hung[1]));
    SYS(close(broken[0]));
    signal(SIGPIPE, SIG_IGN);
    static char page[PAGE];
    uint64_t written = 0, taken = 0;
    for (;;) {
        guest_fill(page, PAGE, written);
        if (write(full[1], page, PAGE) != PAGE)
            break;
        written += PAGE;
    }
    guest_ready();
    do {
        CHECK_EQ(SYS(fcntl(plain[0], F_GETPIPE_SZ)), capacity, "capacity");
        CHECK_EQ(SYS(fcntl(plain[0], F_GETFD)), FD_CLOEXEC, "close-on-exec of a pipe");
        CHECK_EQ(SYS(fcntl(packets[1], F_GETFL)) & (O_DIRECT | O_NONBLOCK), O_DIRECT | O_NONBLOCK,
                 "flags of the packet pipe");
        CHECK_EQ(write(plain[1], "hello, ", 7), 7, "write");
        CHECK_EQ(write(twin, "pipe", 4), 4, "write through the duplicate");
        CHECK_EQ(write(packets[1], "abc", 3), 3, "write of a packet");
        CHECK_EQ(write(packets[1], "defgh", 5), 5, "write of a packet");
        if (!guest_running())
            break;
        int inside;
        SYS(ioctl(plain[0], FIONREAD, &inside));
        CHECK_EQ(inside, 11, "bytes in the pipe");
        expect(plain[0], "hello, pipe");
        char packet[64];
        CHECK_EQ(read(packets[0], packet, sizeof(packet)), 3, "the first packet");
        CHECK_EQ(read(packets[0], packet, sizeof(packet)), 5, "the second packet");
        CHECK(read(packets[0], packet, 1) == -1 && errno == EAGAIN, "a third packet");
        CHECK(write(broken[1], "x", 1) == -1 && errno == EPIPE, "a pipe with no reader takes bytes");
        struct pollfd hang = {.fd = hung[0], .events = POLLIN};
        CHECK_EQ(poll(&hang, 1, 0), 1, "poll of the pipe with no writer");
        CHECK_EQ(hang.revents, POLLIN | POLLHUP, "events of the pipe with no writer");
        /* The full pipe: one page out, one in; nothing lost, nothing twice. */
        CHECK_EQ(read(full[0], page, PAGE), PAGE, "read of the full pipe");
        guest_verify(page, PAGE, taken, "the full pipe");
        taken += PAGE;
        guest_fill(page, PAGE, written);
        CHECK_EQ(write(full[1], page, PAGE), PAGE, "write to the full pipe");
        written += PAGE;
    } while (guest_running());
    expect(hung[0], "left");
    CHECK_EQ(read(hung[0], page, 1), 0, "end of file");
    guest_success();
}
