/* Names that are paths: relative ones, an unlinked one, mode and kind of the file, connections
 * that were made over them, and new ones. */
#include "unix.h"

int main(void)
{
    guest_begin();
    char name[108], lost[108], lone[108];
    guest_path(name, sizeof(name), "server");
    guest_path(lost, sizeof(lost), "lost");
    guest_path(lone, sizeof(lone), "lone");
    SYS(chdir("/tmp"));
    char relative[100];
    snprintf(relative, sizeof(relative), "./guest-%d-%llu", getpid(),
             (unsigned long long)clock_ns(CLOCK_REALTIME));
    int door = bound(SOCK_STREAM, name), near = bound(SOCK_STREAM, relative);
    SYS(listen(door, 8));
    SYS(listen(near, 8));
    SYS(chmod(name, 0640));
    int single = bound(SOCK_SEQPACKET, lone);
    /* Connections whose listening socket is closed; one has lost its server as well. */
    int gone = bound(SOCK_STREAM, lost);
    SYS(listen(gone, 8));
    int client = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(connect_to(client, lost));
    int server = SYS(accept(gone, NULL, NULL));
    int widow = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(connect_to(widow, lost));
    SYS(close(SYS(accept(gone, NULL, NULL))));
    SYS(close(gone));
    SYS(unlink(lost));
    int unlinked = bound(SOCK_STREAM, lost);
    SYS(listen(unlinked, 1));
    SYS(unlink(lost));
    guest_ready();
    do {
        put(client, "asked");
        put(server, "answered");
        if (!guest_running())
            break;
        want(server, "asked", "a request");
        want(client, "answered", "an answer");
        want_name(getsockname, server, lost, "name of an accepted socket");
        want_name(getpeername, client, lost, "name of the server");
        want_name(getpeername, server, "", "name of the client");
        want_name(getpeername, widow, lost, "name of a server that is closed");
        want_name(getsockname, unlinked, lost, "a name that is unlinked");
        want_name(getsockname, near, relative, "a relative name");
        want_name(getsockname, single, lone, "a name without a connection");
        struct stat st;
        SYS(stat(name, &st));
        CHECK(S_ISSOCK(st.st_mode) && (st.st_mode & 07777) == 0640 && st.st_uid == getuid(),
              "the file: mode %o, uid %u", st.st_mode, st.st_uid);
        const char *names[] = {name, relative};
        for (int i = 0; i < 2; i++) {
            int visitor = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
            CHECK(connect_to(visitor, names[i]) == 0, "connect to %s: %s", names[i],
                  strerror(errno));
            int host = SYS(accept(i ? near : door, NULL, NULL));
            put(visitor, "new");
            want(host, "new", "a new connection");
            SYS(close(visitor));
            SYS(close(host));
        }
    } while (guest_running());
    SYS(unlink(name));
    SYS(unlink(relative));
    SYS(unlink(lone));
    guest_success();
}
