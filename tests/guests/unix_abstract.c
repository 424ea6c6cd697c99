/* Abstract names: a listening socket with connections, datagrams, an autobound one. */
#include "unix.h"

int main(void)
{
    guest_begin();
    if (geteuid() != 0)
        skip("hosts of an ordinary user share a network namespace, and so these names");
    char name[100], hub_name[100];
    snprintf(name, sizeof(name), "@vosrun guest %d", getpid());
    snprintf(hub_name, sizeof(hub_name), "@vosrun hub %d", getpid());
    int door = bound(SOCK_STREAM | SOCK_NONBLOCK, name), hub = bound(SOCK_DGRAM, hub_name);
    SYS(listen(door, 8));
    int client = SYS(socket(AF_UNIX, SOCK_STREAM, 0)), waiting = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(connect_to(client, name));
    int server = SYS(accept(door, NULL, NULL));
    int automatic = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
    set_option(automatic, SO_PASSCRED, 1);
    SYS(connect_to(automatic, hub_name));
    struct sockaddr_un before = {0}, after = {0};
    socklen_t size = sizeof(before);
    SYS(getsockname(automatic, (struct sockaddr *)&before, &size));
    guest_ready();
    do {
        put(client, "asked");
        put(automatic, "datagram");
        int more = guest_running();
        want(server, "asked", "a request");
        want(hub, "datagram", "a datagram");
        want_name(getsockname, door, name, "name of the door");
        want_name(getsockname, server, name, "name of the accepted one");
        want_name(getpeername, client, name, "name of the server");
        size = sizeof(after);
        SYS(getsockname(automatic, (struct sockaddr *)&after, &size));
        CHECK(!memcmp(&before, &after, sizeof(before)), "another automatic name");
        SYS(connect_to(waiting, name));
        int fresh = SYS(accept(door, NULL, NULL));
        put(waiting, "new");
        want(fresh, "new", "a new connection");
        SYS(close(fresh));
        SYS(close(waiting));
        waiting = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
        if (!more)
            break;
    } while (guest_running());
    guest_success();
}
