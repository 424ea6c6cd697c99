/* A TCP connection to a program outside of the job, with a checked stream in both directions at
 * full load. The argument is the family (tcp.h), or `server`: the other end connects. */
#include "tcp.h"
#include <pthread.h>

static int fd;
static volatile int stop;
static volatile uint64_t received;

static void *send_all(void *unused)
{
    static unsigned char buf[50000];
    for (uint64_t sent = 0; !stop;) {
        size_t n = 1 + guest_mix(sent) % sizeof(buf);
        tcp_pattern(buf, n, sent);
        tcp_write_all(fd, buf, n);
        sent += n;
        usleep(1000);
    }
    return unused;
}

static void *receive_all(void *unused)
{
    static unsigned char buf[65536];
    ssize_t n;
    while ((n = SYS(recv(fd, buf, sizeof(buf), 0))) > 0) {
        tcp_check(buf, (size_t)n, received);
        received += (uint64_t)n;
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t sender, receiver;
    guest_begin();
    fd = tcp_connect(argc > 1 ? argv[1] : "4", 's');
    CHECK(!pthread_create(&sender, NULL, send_all, NULL), "thread");
    CHECK(!pthread_create(&receiver, NULL, receive_all, NULL), "thread");
    guest_ready();
    uint64_t before = 0;
    do {
        /* A turn is one in which something came. */
        while (received == before && !guest_stopping())
            usleep(1000);
        before = received;
    } while (guest_running());
    stop = 1;
    CHECK(!pthread_join(sender, NULL), "join");
    SYS(shutdown(fd, SHUT_WR));
    CHECK(!pthread_join(receiver, NULL), "join");
    SYS(close(fd));
    guest_success();
}
