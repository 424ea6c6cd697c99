/* Datagram sockets: bound, connected or not, their senders' names, empty messages, connect to
 * nobody, one whose sender is closed. */
#include "unix.h"

static void from(int fd, const char *text, const char *name, const char *what)
{
    struct sockaddr_un got = {0};
    socklen_t len = sizeof(got);
    char bytes[64];
    ssize_t n = recvfrom(fd, bytes, sizeof(bytes), MSG_DONTWAIT, (struct sockaddr *)&got, &len);
    CHECK(n >= 0, "%s: %s", what, strerror(errno));
    CHECK((size_t)n == strlen(text) && !memcmp(bytes, text, (size_t)n), "%s: got \"%.*s\"", what,
          (int)n, bytes);
    CHECK(!strcmp(len > sizeof(sa_family_t) ? got.sun_path : "", name), "%s: from \"%s\"", what,
          got.sun_path);
}

static void send_to(int fd, const char *text, const char *name)
{
    struct sockaddr_un at;
    socklen_t len = address(&at, name);
    CHECK_EQ(SYS(sendto(fd, text, strlen(text), 0, (struct sockaddr *)&at, len)), strlen(text),
             "sendto");
}

int main(void)
{
    guest_begin();
    char hub_name[108], one_name[108], gone_name[108], left_name[108];
    guest_path(hub_name, sizeof(hub_name), "hub");
    guest_path(one_name, sizeof(one_name), "one");
    guest_path(gone_name, sizeof(gone_name), "gone");
    guest_path(left_name, sizeof(left_name), "left");
    int hub = bound(SOCK_DGRAM, hub_name), one = bound(SOCK_DGRAM, one_name);
    int nameless = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
    int fickle = SYS(socket(AF_UNIX, SOCK_DGRAM, 0)), bereft = SYS(socket(AF_UNIX, SOCK_DGRAM, 0));
    SYS(connect_to(nameless, hub_name));
    SYS(connect_to(one, hub_name));
    SYS(connect_to(fickle, hub_name));
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    SYS(connect(fickle, &nobody, sizeof(nobody)));
    int left = bound(SOCK_DGRAM, left_name);
    SYS(connect_to(bereft, left_name));
    SYS(close(left));
    SYS(unlink(left_name));
    int gone = bound(SOCK_DGRAM, gone_name);
    send_to(gone, "of a dead one", hub_name);
    SYS(close(gone));
    SYS(unlink(gone_name));
    int first = 1;
    guest_ready();
    do {
        put(nameless, "from nobody");
        put(one, "from one");
        CHECK_EQ(send(one, "", 0, 0), 0, "an empty message");
        send_to(fickle, "unconnected", hub_name);
        send_to(hub, "to one", one_name);
        if (!guest_running())
            break;
        if (first)
            from(hub, "of a dead one", gone_name, "the message of a closed socket");
        first = 0;
        from(hub, "from nobody", "", "a message without a sender");
        from(hub, "from one", one_name, "a message of one");
        from(hub, "", one_name, "an empty message");
        from(hub, "unconnected", "", "a message without a connection");
        want_nothing(hub, "no more");
        from(one, "to one", hub_name, "a message to one");
        want_name(getsockname, hub, hub_name, "name of the hub");
        want_name(getpeername, one, hub_name, "peer of one");
        want_name(getpeername, bereft, left_name, "a peer that is closed");
        struct sockaddr_un any;
        socklen_t len = sizeof(any);
        CHECK(getpeername(fickle, (struct sockaddr *)&any, &len) == -1 && errno == ENOTCONN,
              "a peer of nobody");
        CHECK(send(fickle, "x", 1, 0) == -1 && errno == ENOTCONN, "nobody: %s", strerror(errno));
    } while (guest_running());
    CHECK(send(bereft, "x", 1, 0) == -1 && errno == ECONNREFUSED, "a dead peer: %s", strerror(errno));
    struct stat st;
    SYS(stat(hub_name, &st));
    CHECK(S_ISSOCK(st.st_mode), "the name is no socket");
    SYS(unlink(hub_name));
    SYS(unlink(one_name));
    guest_success();
}
