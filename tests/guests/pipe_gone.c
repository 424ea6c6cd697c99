/* Pipes of which one end is gone: SIGPIPE and EPIPE without a reader, the rest and then the end
 * of file without a writer; the other end in another process that has ended. */
#include "guest.h"
#include <poll.h>
#include <sys/wait.h>

static volatile sig_atomic_t signals;

static void on_pipe(int sig)
{
    (void)sig;
    signals++;
}

int main(void)
{
    guest_begin();
    int no_reader[2], no_writer[2], half[2];
    SYS(pipe(no_reader));
    SYS(pipe(no_writer));
    SYS(pipe(half));
    pid_t child = SYS(fork());
    if (child == 0) {
        SYS(write(no_writer[1], "rest", 4));
        SYS(write(half[1], "0123456789", 10));
        _exit(0);
    }
    SYS(close(no_reader[0]));
    SYS(close(no_writer[1]));
    SYS(close(half[1]));
    SYS(waitpid(child, NULL, 0));
    char bytes[16];
    CHECK_EQ(SYS(read(half[0], bytes, 4)), 4, "the first half");
    struct sigaction act = {.sa_handler = on_pipe};
    SYS(sigaction(SIGPIPE, &act, NULL));
    guest_ready();
    int turns = 0, rest = 0;
    do {
        CHECK(write(no_reader[1], "x", 1) == -1 && errno == EPIPE, "a write to nobody");
        CHECK_EQ(signals, ++turns, "SIGPIPEs");
        struct pollfd ask = {.fd = no_reader[1], .events = POLLOUT};
        SYS(poll(&ask, 1, 0));
        CHECK_EQ(ask.revents & POLLERR, POLLERR, "poll of a pipe without a reader");
        ask = (struct pollfd){.fd = no_writer[0], .events = POLLIN};
        SYS(poll(&ask, 1, 0));
        CHECK_EQ(ask.revents & POLLHUP, POLLHUP, "poll of a pipe without a writer");
        if (turns % 3 == 0 && rest < 4)
            CHECK_EQ((SYS(read(no_writer[0], bytes, 1)), bytes[0]), "rest"[rest++], "the rest");
        if (rest == 4)
            CHECK_EQ(SYS(read(no_writer[0], bytes, 1)), 0, "the end of file");
    } while (guest_running());
    CHECK_EQ(SYS(read(half[0], bytes, sizeof(bytes))), 6, "the other half");
    CHECK(!memcmp(bytes, "456789", 6), "the other half");
    CHECK_EQ(SYS(read(half[0], bytes, 1)), 0, "the end of file");
    guest_success();
}
