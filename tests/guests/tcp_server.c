/* A server whose clients (tcp_client, no part of the job) come and stay while it moves. It tells each
 * its address, and sends back what comes. The argument is `blocking`, or none. */
#include "tcp.h"
#include <pthread.h>

static volatile unsigned served;

/* The address that accept(2) and getpeername(2) show. */
static void greet(int fd, const union tcp_address *accepted)
{
    char text[80], name[64];
    union tcp_address peer, own;
    socklen_t len = sizeof(peer);
    SYS(getpeername(fd, &peer.any, &len));
    CHECK(!memcmp(&peer.v6.sin6_addr, &accepted->v6.sin6_addr, 16) &&
              peer.v6.sin6_port == accepted->v6.sin6_port, "accept and getpeername differ");
    len = sizeof(own);
    SYS(getsockname(fd, &own.any, &len));
    CHECK(inet_ntop(AF_INET6, &peer.v6.sin6_addr, name, sizeof(name)), "inet_ntop");
    int n = snprintf(text, sizeof(text), "%s %u\n", name, ntohs(peer.v6.sin6_port));
    tcp_write_all(fd, text, (size_t)n);
}

static void *serve(void *with)
{
    int fd = (int)(intptr_t)with;
    static __thread char buf[4096];
    ssize_t n;
    while ((n = recv(fd, buf, sizeof(buf), 0)) > 0) {
        if (send(fd, buf, (size_t)n, MSG_NOSIGNAL) != n)
            break;
        __sync_fetch_and_add(&served, 1);
    }
    SYS(close(fd));
    return NULL;
}

static int listener;

static void begin(int fd, const union tcp_address *peer)
{
    pthread_t thread;
    greet(fd, peer);
    CHECK(!pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd), "thread");
    CHECK(!pthread_detach(thread), "detach");
}

static void *accept_all(void *unused)
{
    for (;;) {
        union tcp_address peer;
        socklen_t len = sizeof(peer);
        begin(SYS(accept(listener, &peer.any, &len)), &peer);
    }
    return unused;
}

int main(int argc, char **argv)
{
    int blocking = argc > 1 && !strcmp(argv[1], "blocking"), zero = 0;
    pthread_t thread;
    guest_begin();
    listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK), 0);
    if (listener < 0)
        skip("no IPv6");
    union tcp_address any = {.v6 = {.sin6_family = AF_INET6}};
    SYS(setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)));
    SYS(bind(listener, &any.any, sizeof(any.v6)));
    SYS(listen(listener, 16));
    socklen_t len = sizeof(any);
    SYS(getsockname(listener, &any.any, &len));
    tcp_say_file("", ntohs(any.v6.sin6_port));
    if (blocking)
        CHECK(!pthread_create(&thread, NULL, accept_all, NULL), "thread");
    guest_ready();
    unsigned before = 0;
    do {
        /* A turn is one in which a client was served. */
        while (served == before && !guest_stopping()) {
            struct pollfd p = {.fd = listener, .events = POLLIN};
            if (blocking || !SYS(poll(&p, 1, 1))) {
                usleep(1000);
                continue;
            }
            union tcp_address peer;
            len = sizeof(peer);
            int fd = accept(listener, &peer.any, &len);
            CHECK(fd >= 0 || errno == EAGAIN, "accept: %s", strerror(errno));
            if (fd >= 0)
                begin(fd, &peer);
        }
        before = served;
        union tcp_address now;
        len = sizeof(now);
        SYS(getsockname(listener, &now.any, &len));
        CHECK(!memcmp(&now.v6, &any.v6, sizeof(now.v6)), "the listening socket has another address");
    } while (guest_running());
    tcp_say_file(".end", 1);
    guest_success();
}
