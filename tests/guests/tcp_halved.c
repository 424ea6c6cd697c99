/* A TCP connection with a checked stream in both directions, of which this end shuts its own down
 * when GUEST_MEET.half is there; the other goes on. */
#include "tcp.h"
#include <pthread.h>

static int fd;

static int is_told(void)
{
    char path[512];
    snprintf(path, sizeof(path), "%s.half", guest_env("GUEST_MEET"));
    return access(path, F_OK) == 0;
}

static void *send_some(void *unused)
{
    static unsigned char buf[50000];
    for (uint64_t sent = 0; !is_told();) {
        size_t n = 1 + guest_mix(sent) % sizeof(buf);
        tcp_pattern(buf, n, sent);
        tcp_write_all(fd, buf, n);
        sent += n;
        usleep(1000);
    }
    SYS(shutdown(fd, SHUT_WR));
    return unused;
}

int main(void)
{
    static unsigned char buf[65536];
    pthread_t sender;
    uint64_t received = 0;
    guest_begin();
    fd = tcp_connect("4", 'k');
    CHECK(!pthread_create(&sender, NULL, send_some, NULL), "thread");
    guest_ready();
    do {
        ssize_t n = SYS(recv(fd, buf, sizeof(buf), 0));
        CHECK(n, "end of file after %llu bytes", (unsigned long long)received);
        tcp_check(buf, (size_t)n, received);
        received += (uint64_t)n;
    } while (guest_running());
    CHECK(is_told(), "nothing was shut down");
    CHECK(!pthread_join(sender, NULL), "join");
    SYS(close(fd));
    guest_success();
}
