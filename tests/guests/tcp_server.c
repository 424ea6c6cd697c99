/* A server whose clients (tcp_client, no part of the job) come and stay while it moves. It tells each
 * the client's address and its own, and sends back what comes. The arguments: `any4` or `v6only`
 * (otherwise both families), `blocking`, `group` (three sockets of one port, SO_REUSEPORT). */
#include "tcp.h"
#include <pthread.h>

static volatile unsigned served;
static struct listener {
    int fd;
    union tcp_address own;
    volatile unsigned accepted;
} listeners[3];
static size_t listening = 1;

/* The addresses that accept(2), getpeername(2) and getsockname(2) show. */
static void greet(int fd, const union tcp_address *accepted)
{
    char text[160], name[64], own_name[64];
    union tcp_address peer, own;
    socklen_t len = sizeof(peer);
    SYS(getpeername(fd, &peer.any, &len));
    CHECK(!strcmp(tcp_name(&peer, name), tcp_name(accepted, own_name)),
          "accept tells %s, getpeername %s", own_name, name);
    len = sizeof(own);
    SYS(getsockname(fd, &own.any, &len));
    int n = snprintf(text, sizeof(text), "%s %s\n", name, tcp_name(&own, own_name));
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

static void begin(struct listener *at, int fd, const union tcp_address *peer)
{
    pthread_t thread;
    at->accepted++;
    greet(fd, peer);
    CHECK(!pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd), "thread");
    CHECK(!pthread_detach(thread), "detach");
}

static void *accept_all(void *with)
{
    struct listener *at = with;
    for (;;) {
        union tcp_address peer = {.any = {0}};
        socklen_t len = sizeof(peer);
        int fd = SYS(accept(at->fd, &peer.any, &len));
        begin(at, fd, &peer);
    }
    return with;
}

static void accept_one(struct listener *at)
{
    union tcp_address peer = {.any = {0}};
    socklen_t len = sizeof(peer);
    int fd = accept(at->fd, &peer.any, &len);
    CHECK(fd >= 0 || errno == EAGAIN, "accept: %s", strerror(errno));
    if (fd >= 0)
        begin(at, fd, &peer);
}

static void open_listener(struct listener *at, int family, int v6only, int flags, in_port_t port)
{
    int one = 1;
    at->fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (at->fd < 0 && family == AF_INET6)
        skip("no IPv6");
    SYS(at->fd);
    union tcp_address any = {.any = {0}};
    any.any.sa_family = (sa_family_t)family;
    socklen_t len = sizeof(any.v4);
    if (family == AF_INET6) {
        SYS(setsockopt(at->fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof(v6only)));
        len = sizeof(any.v6);
    }
    /* At the same place in both. */
    any.v4.sin_port = port;
    if (listening > 1)
        SYS(setsockopt(at->fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)));
    SYS(bind(at->fd, &any.any, len));
    SYS(listen(at->fd, 16));
    len = sizeof(at->own);
    SYS(getsockname(at->fd, &at->own.any, &len));
}

static void check_listeners(void)
{
    unsigned all = 0;
    for (size_t i = 0; i < listening; i++) {
        union tcp_address now = {.any = {0}};
        socklen_t len = sizeof(now);
        SYS(getsockname(listeners[i].fd, &now.any, &len));
        CHECK(!memcmp(&now, &listeners[i].own, len), "a listening socket has another address");
        all += listeners[i].accepted;
    }
    /* A kernel that spreads them leaves none out for so long. */
    for (size_t i = 0; i < listening && all > 200; i++)
        CHECK(listeners[i].accepted, "socket %zu of %zu has got none of %u", i, listening, all);
}

int main(int argc, char **argv)
{
    int blocking = 0, family = AF_INET6, v6only = 0;
    pthread_t thread;
    guest_begin();
    for (int i = 1; i < argc; i++) {
        blocking |= !strcmp(argv[i], "blocking");
        v6only |= !strcmp(argv[i], "v6only");
        if (!strcmp(argv[i], "any4"))
            family = AF_INET;
        if (!strcmp(argv[i], "group"))
            listening = COUNT(listeners);
    }
    for (size_t i = 0; i < listening; i++)
        open_listener(&listeners[i], family, v6only, blocking ? 0 : SOCK_NONBLOCK,
                      listeners[0].own.v4.sin_port);
    if (v6only)
        tcp_say_file(".v6", 1);
    if (family == AF_INET)
        tcp_say_file(".v4", 1);
    tcp_say_file("", ntohs(listeners[0].own.v4.sin_port));
    for (size_t i = 0; blocking && i < listening; i++)
        CHECK(!pthread_create(&thread, NULL, accept_all, &listeners[i]), "thread");
    guest_ready();
    unsigned before = 0;
    do {
        /* A turn is one in which a client was served. */
        while (served == before && !guest_stopping()) {
            struct pollfd p[COUNT(listeners)];
            for (size_t i = 0; i < listening; i++)
                p[i] = (struct pollfd){.fd = listeners[i].fd, .events = POLLIN};
            if (blocking || !SYS(poll(p, listening, 1))) {
                usleep(1000);
                continue;
            }
            for (size_t i = 0; i < listening; i++)
                accept_one(&listeners[i]);
        }
        before = served;
        check_listeners();
    } while (guest_running());
    tcp_say_file(".end", 1);
    guest_success();
}
