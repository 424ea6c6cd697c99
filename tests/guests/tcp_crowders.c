/* Clients of tcp_crowd, no part of a job, several at once. */
#include "tcp.h"
#include <pthread.h>

enum { CALLERS = 4 };
static unsigned port;
static volatile int over;

static int has_ended(void)
{
    char path[512];
    snprintf(path, sizeof(path), "%s.end", guest_env("GUEST_MEET"));
    return over || access(path, F_OK) == 0;
}

/* What fails because the server has ended is none of its faults. */
static int failed(const char *what)
{
    int error = errno;
    for (int i = 0; i < 2000 && !has_ended(); i++)
        usleep(1000);
    CHECK(has_ended(), "%s: %s", what, strerror(error));
    return over = 1;
}

static void call(uint64_t question)
{
    union tcp_address address;
    struct linger now = {1, 0};
    uint64_t in[2];
    socklen_t len = tcp_loopback(&address, "4", port);
    int fd = SYS(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    /* A queue that is full lets the question wait, but not for ever. */
    struct timeval patience = {.tv_sec = 60};
    SYS(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)));
    if (connect(fd, &address.any, len)) {
        failed("connect");
    } else if (question % 8 == 1) {
        /* Gone without a word. */
        SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
    } else if (send(fd, &question, sizeof(question), MSG_NOSIGNAL) < 0) {
        failed("send");
    } else if (question % 8 == 2) {
        SYS(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
    } else {
        size_t got = 0;
        while (got < sizeof(in)) {
            ssize_t n = recv(fd, (char *)in + got, sizeof(in) - got, 0);
            if (n <= 0) {
                failed(n ? "recv" : "end of file instead of an answer");
                break;
            }
            got += (size_t)n;
        }
        CHECK(over || (in[0] == question && in[1] == guest_mix(question)), "another answer");
    }
    SYS(close(fd));
}

static void *call_all(void *with)
{
    for (uint64_t n = 0; !over && !guest_stopping(); n++) {
        call(n * CALLERS + (uint64_t)(intptr_t)with);
        /* Not more than this machine has ports for. */
        usleep(2000);
    }
    return NULL;
}

int main(void)
{
    char text[32];
    pthread_t callers[CALLERS];
    guest_begin();
    guest_ready();
    while (!port && guest_running()) {
        if (access(guest_env("GUEST_MEET"), F_OK))
            continue;
        tcp_await_file("", text, sizeof(text));
        port = (unsigned)atoi(text);
    }
    for (intptr_t i = 0; i < CALLERS; i++)
        CHECK(!pthread_create(&callers[i], NULL, call_all, (void *)i), "thread");
    while (guest_running())
        ;
    for (int i = 0; i < CALLERS; i++)
        CHECK(!pthread_join(callers[i], NULL), "join");
    guest_success();
}
