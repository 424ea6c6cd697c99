/* Calls on connections that sleep while the job moves: recv, MSG_WAITALL, poll, epoll_wait, with
 * and without a timeout of the socket. None ends early or with an error. */
#include "tcp.h"
#include <pthread.h>
#include <sys/epoll.h>

static volatile unsigned turns;

static void await_input(int fd, int way)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct epoll_event event = {.events = EPOLLIN};
    if (way == 1) {
        CHECK_EQ(SYS(poll(&p, 1, -1)), 1, "poll");
    } else if (way == 2) {
        int epoll = SYS(epoll_create1(EPOLL_CLOEXEC));
        SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
        CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, -1)), 1, "epoll_wait");
        SYS(close(epoll));
    }
}

struct talk {
    int fd, way;
    volatile int asked;
};

static void *listen_all(void *with)
{
    struct talk *talk = with;
    static __thread unsigned char buf[1000];
    for (uint64_t at = 0;; at += sizeof(buf)) {
        await_input(talk->fd, talk->way);
        /* With a timeout the call may answer a part, as natively. */
        size_t got = 0;
        while (got < sizeof(buf)) {
            ssize_t n = recv(talk->fd, buf + got, sizeof(buf) - got, MSG_WAITALL);
            CHECK(n >= 0, "recv: %s", strerror(errno));
            if (!n)
                return NULL;
            got += (size_t)n;
        }
        tcp_check(buf, sizeof(buf), at);
        __sync_fetch_and_add(&turns, 1);
        talk->asked = 0;
    }
}

int main(void)
{
    static struct talk talks[4];
    pthread_t threads[COUNT(talks)];
    guest_begin();
    for (size_t i = 0; i < COUNT(talks); i++) {
        talks[i].fd = tcp_connect("4", 'q');
        talks[i].way = (int)i;
        if (i == 3) {
            struct timeval timeout = {.tv_sec = 100};
            SYS(setsockopt(talks[i].fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
        }
        CHECK(!pthread_create(&threads[i], NULL, listen_all, &talks[i]), "thread");
    }
    guest_ready();
    unsigned n = 0;
    while (guest_running()) {
        /* Most of the time all sleep. */
        struct talk *talk = &talks[n / 8 % COUNT(talks)];
        if (n++ % 8 == 0 && !talk->asked) {
            talk->asked = 1;
            tcp_write_all(talk->fd, "x", 1);
        }
    }
    for (size_t i = 0; i < COUNT(talks); i++) {
        SYS(shutdown(talks[i].fd, SHUT_WR));
        CHECK(!pthread_join(threads[i], NULL), "join");
    }
    CHECK(turns, "nothing ever came");
    guest_success();
}
