/* Ends and whole descriptions that processes share: flags, bytes, an answer of the other. */
#include "unix.h"
#include <sys/wait.h>

int main(void)
{
    guest_begin();
    int pair[2], shared[2];
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, shared));
    pid_t child = SYS(fork());
    if (!child) {
        SYS(close(pair[0]));
        char text[64];
        ssize_t n;
        /* An echo, which changes the flag that both see before each answer. */
        while ((n = recv(pair[1], text, sizeof(text), 0)) > 0) {
            int flags = SYS(fcntl(shared[0], F_GETFL));
            SYS(fcntl(shared[0], F_SETFL, flags ^ O_NONBLOCK));
            CHECK_EQ(send(pair[1], text, (size_t)n, 0), n, "answer");
        }
        CHECK_EQ(n, 0, "end of file");
        _exit(0);
    }
    SYS(close(pair[1]));
    int flags = SYS(fcntl(shared[0], F_GETFL));
    guest_ready();
    do {
        put(shared[0], "kept");
        put(pair[0], "ask");
        char text[8];
        if (!guest_running())
            break;
        CHECK_EQ(recv(pair[0], text, sizeof(text), 0), 3, "an answer");
        flags ^= O_NONBLOCK;
        CHECK_EQ(SYS(fcntl(shared[0], F_GETFL)), flags, "flags that the child has set");
        want(shared[1], "kept", "a packet to oneself");
    } while (guest_running());
    SYS(shutdown(pair[0], SHUT_WR));
    char rest[64];
    while (SYS(recv(pair[0], rest, sizeof(rest), 0)) > 0)
        continue;
    int status = -1;
    SYS(waitpid(child, &status, 0));
    CHECK_EQ(status, 0, "status of the child");
    guest_success();
}
