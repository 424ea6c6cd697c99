/* Clients of tcp_backlog, no part of a job: they send at once, and wait for the answer. */
#include "tcp.h"

enum { CALLERS = 5, LENGTH = 3000 };

int main(void)
{
    static unsigned char out[CALLERS][LENGTH], in[LENGTH];
    int fds[CALLERS];
    char text[32], path[512];
    guest_begin();
    guest_ready();
    snprintf(path, sizeof(path), "%s", guest_env("GUEST_MEET"));
    while (access(path, F_OK) && guest_running())
        ;
    tcp_await_file("", text, sizeof(text));
    for (unsigned i = 0; i < CALLERS; i++) {
        union tcp_address address;
        socklen_t len = tcp_loopback(&address, "4", (unsigned)atoi(text));
        fds[i] = SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        SYS(connect(fds[i], &address.any, len));
        out[i][0] = (unsigned char)i;
        tcp_pattern(out[i] + 1, LENGTH - 1, i);
        tcp_write_all(fds[i], out[i], LENGTH);
    }
    for (unsigned i = 0; i < CALLERS; i++) {
        tcp_read_all(fds[i], in, LENGTH);
        CHECK(!memcmp(in, out[i], LENGTH), "another answer for caller %u", i);
        SYS(close(fds[i]));
    }
    while (guest_running())
        ;
    guest_success();
}
