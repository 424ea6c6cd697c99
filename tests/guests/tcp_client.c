/* Clients of tcp_server, no part of a job: some stay, one after another comes and goes. */
#include "tcp.h"

static int is_over(void)
{
    char path[512];
    snprintf(path, sizeof(path), "%s.end", guest_env("GUEST_MEET"));
    return access(path, F_OK) == 0;
}

__attribute__((noreturn)) static void wait_for_the_end(void)
{
    while (guest_running())
        ;
    guest_success();
}

/* What fails because the server has ended is none of its faults. */
static long good(long value, const char *what)
{
    if (value <= 0) {
        int error = errno;
        /* The word may come a moment later than the end. */
        for (int i = 0; i < 2000 && !is_over(); i++)
            usleep(1000);
        CHECK(is_over(), "%s: %ld, %s", what, value, strerror(error));
        wait_for_the_end();
    }
    return value;
}

static unsigned port;

static int call(const char *family)
{
    union tcp_address address, own;
    socklen_t len = tcp_loopback(&address, family, port);
    int fd = SYS(socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    good(connect(fd, &address.any, len) == 0, "connect");
    char line[80], wanted[80], name[64], byte = 0;
    size_t n = 0;
    while (byte != '\n' && n < sizeof(line) - 1) {
        good(recv(fd, &byte, 1, 0), "the greeting");
        line[n++] = byte;
    }
    line[n] = 0;
    len = sizeof(own);
    SYS(getsockname(fd, &own.any, &len));
    if (own.any.sa_family == AF_INET)
        snprintf(wanted, sizeof(wanted), "::ffff:%s %u\n", inet_ntoa(own.v4.sin_addr),
                 ntohs(own.v4.sin_port));
    else
        snprintf(wanted, sizeof(wanted), "%s %u\n",
                 inet_ntop(AF_INET6, &own.v6.sin6_addr, name, sizeof(name)),
                 ntohs(own.v6.sin6_port));
    CHECK(!strcmp(line, wanted), "the server takes %s for %s", wanted, line);
    return fd;
}

static void exchange(int fd, uint64_t turn)
{
    unsigned char out[300], in[300];
    tcp_pattern(out, sizeof(out), turn * 7);
    good(send(fd, out, sizeof(out), MSG_NOSIGNAL), "send");
    for (size_t got = 0; got < sizeof(in);)
        got += (size_t)good(recv(fd, in + got, sizeof(in) - got, 0), "recv");
    CHECK(!memcmp(in, out, sizeof(in)), "the server answers something else");
}

int main(void)
{
    char text[32], path[512];
    int stay[3] = {-1, -1, -1};
    guest_begin();
    guest_ready();
    snprintf(path, sizeof(path), "%s", guest_env("GUEST_MEET"));
    for (uint64_t turn = 0; guest_running(); turn++) {
        if (!port) {
            if (access(path, F_OK))
                continue;
            tcp_await_file("", text, sizeof(text));
            port = (unsigned)atoi(text);
        }
        int *one = &stay[turn % COUNT(stay)];
        if (*one < 0)
            *one = call(turn % 2 ? "4" : "6");
        exchange(*one, turn);
        int fd = call(turn % 3 ? "4" : "6");
        exchange(fd, turn);
        SYS(close(fd));
    }
    guest_success();
}
