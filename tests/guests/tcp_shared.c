/* A connection that two processes share, under two numbers each; each reads and writes. */
#include "tcp.h"
#include <sys/wait.h>

static void exchange(int fd, char what)
{
    char got;
    tcp_write_all(fd, &what, 1);
    tcp_read_all(fd, &got, 1);
    CHECK_EQ(got, what, "echo");
}

int main(void)
{
    int turn[2], done[2];
    char token;
    guest_begin();
    int fd = tcp_connect("4", 'e');
    int again = SYS(fcntl(fd, F_DUPFD_CLOEXEC, 100));
    SYS(pipe2(turn, O_CLOEXEC));
    SYS(pipe2(done, O_CLOEXEC));
    pid_t child = SYS(fork());
    if (!child) {
        SYS(close(turn[1]));
        while (SYS(read(turn[0], &token, 1)) == 1) {
            exchange(again, 'c');
            exchange(fd, 'd');
            CHECK_EQ(write(done[1], &token, 1), 1, "done");
        }
        _exit(0);
    }
    SYS(close(turn[0]));
    guest_ready();
    do {
        exchange(fd, 'a');
        exchange(again, 'b');
        CHECK_EQ(write(turn[1], "t", 1), 1, "turn");
        CHECK_EQ(SYS(read(done[0], &token, 1)), 1, "the child's turn");
        int flags = SYS(fcntl(fd, F_GETFL)) ^ O_NONBLOCK;
        SYS(fcntl(fd, F_SETFL, flags));
        CHECK_EQ(SYS(fcntl(again, F_GETFL)), flags, "flags of the other number");
        SYS(fcntl(fd, F_SETFL, flags ^ O_NONBLOCK));
    } while (guest_running());
    int status;
    SYS(close(turn[1]));
    SYS(waitpid(child, &status, 0));
    CHECK_EQ(status, 0, "the child's end");
    tcp_finish(fd);
    guest_success();
}
