/* A writer blocks on a full window, for as long as the peer does not read; then all comes. */
#include "tcp.h"
#include <pthread.h>

enum { SIZE = 24 << 20 };
static int fd;
static volatile uint64_t written;

static void *write_all(void *unused)
{
    static unsigned char buf[100000];
    while (written < SIZE) {
        tcp_pattern(buf, sizeof(buf), written);
        tcp_write_all(fd, buf, sizeof(buf));
        written += sizeof(buf);
    }
    return unused;
}

int main(void)
{
    pthread_t writer;
    guest_begin();
    fd = tcp_connect("4", 'w');
    CHECK(!pthread_create(&writer, NULL, write_all, NULL), "thread");
    uint64_t before;
    do {
        before = written;
        usleep(100000);
    } while (written != before);
    guest_ready();
    while (guest_running())
        /* Natively, and in a relay, only so much has room. */
        CHECK(written < SIZE, "%llu bytes were taken by nobody", (unsigned long long)written);
    tcp_say_file(".go", 1);
    CHECK(!pthread_join(writer, NULL), "join");
    tcp_finish(fd);
    guest_success();
}
