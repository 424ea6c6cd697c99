/* A listening socket with connections that nobody has accepted, in their order. */
#include "unix.h"

enum { CLIENTS = 4 };

int main(void)
{
    guest_begin();
    char name[108], own[108];
    guest_path(name, sizeof(name), "door");
    guest_path(own, sizeof(own), "client");
    int door = bound(SOCK_STREAM | SOCK_NONBLOCK, name);
    SYS(listen(door, CLIENTS - 1));
    int packets = bound(SOCK_SEQPACKET | SOCK_NONBLOCK, own);
    SYS(listen(packets, 5));
    guest_ready();
    do {
        int clients[CLIENTS], packet = SYS(socket(AF_UNIX, SOCK_SEQPACKET, 0));
        for (int i = 0; i < CLIENTS; i++) {
            clients[i] = SYS(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
            SYS(connect_to(clients[i], name));
        }
        SYS(connect_to(packet, own));
        int more = guest_running();
        int late = SYS(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
        CHECK(connect_to(late, name) == -1 && errno == EAGAIN, "room for more: %s",
              strerror(errno));
        CHECK_EQ(option(door, SO_ACCEPTCONN), 1, "SO_ACCEPTCONN");
        for (int i = 0; i < CLIENTS; i++) {
            char text[16];
            snprintf(text, sizeof(text), "client %d", i);
            put(clients[i], text);
            int server = SYS(accept(door, NULL, NULL));
            want(server, text, "the order of connections");
            want_name(getsockname, server, name, "name of an accepted socket");
            want_name(getpeername, clients[i], name, "name of the server");
            want_name(getsockname, clients[i], "", "name of a client");
            CHECK_EQ(peer_of(server).pid, getpid(), "SO_PEERCRED of the server");
            CHECK_EQ(peer_of(clients[i]).pid, getpid(), "SO_PEERCRED of the client");
            put(server, "welcome");
            want(clients[i], "welcome", "an answer");
            SYS(close(server));
            SYS(close(clients[i]));
        }
        CHECK(accept(door, NULL, NULL) == -1 && errno == EAGAIN, "one connection more");
        int server = SYS(accept(packets, NULL, NULL));
        put(packet, "packet");
        want(server, "packet", "a packet");
        SYS(close(server));
        SYS(close(packet));
        SYS(close(late));
        if (!more)
            break;
    } while (guest_running());
    SYS(unlink(name));
    SYS(unlink(own));
    guest_success();
}
