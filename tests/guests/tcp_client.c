/* Clients of tcp_server, no part of a job: some stay, one after another comes and goes. */
#include "tcp.h"

static int has_word(const char *suffix)
{
    char path[512];
    snprintf(path, sizeof(path), "%s%s", guest_env("GUEST_MEET"), suffix);
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
        for (int i = 0; i < 2000 && !has_word(".end"); i++)
            usleep(1000);
        CHECK(has_word(".end"), "%s: %ld, %s", what, value, strerror(error));
        wait_for_the_end();
    }
    return value;
}

static unsigned port;

/* One of the server's addresses: it listens at all of them. */
static socklen_t choose(union tcp_address *to, uint64_t turn)
{
    int v6 = has_word(".v6") || (turn % 2 && !has_word(".v4"));
    socklen_t len = tcp_loopback(to, v6 ? "6" : "4", port);
    if (!v6)
        to->v4.sin_addr.s_addr = htonl((uint32_t)(INADDR_LOOPBACK + turn % 5));
    return len;
}

static int call(uint64_t turn)
{
    union tcp_address address, own = {.any = {0}};
    socklen_t len = choose(&address, turn);
    int fd = SYS(socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    good(connect(fd, &address.any, len) == 0, "connect");
    char line[160], wanted[160], name[64], own_name[64], byte = 0;
    size_t n = 0;
    while (byte != '\n' && n < sizeof(line) - 1) {
        good(recv(fd, &byte, 1, 0), "the greeting");
        line[n++] = byte;
    }
    line[n] = 0;
    len = sizeof(own);
    SYS(getsockname(fd, &own.any, &len));
    snprintf(wanted, sizeof(wanted), "%s %s\n", tcp_name(&own, own_name),
             tcp_name(&address, name));
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
    char text[32];
    int stay[3] = {-1, -1, -1};
    guest_begin();
    guest_ready();
    for (uint64_t turn = 0; guest_running(); turn++) {
        if (!port) {
            if (!has_word(""))
                continue;
            tcp_await_file("", text, sizeof(text));
            port = (unsigned)atoi(text);
        }
        int *one = &stay[turn % COUNT(stay)];
        if (*one < 0)
            *one = call(turn);
        exchange(*one, turn);
        int fd = call(turn / 3);
        exchange(fd, turn);
        SYS(close(fd));
    }
    guest_success();
}
