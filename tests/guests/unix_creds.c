/* Credentials: of a peer, living or dead, of the maker of a pair, of each sender. */
#include "unix.h"
#include <sys/wait.h>

static void want_cred(struct ucred got, pid_t pid, const char *what)
{
    CHECK_EQ(got.pid, pid, what);
    CHECK_EQ(got.uid, getuid(), what);
    CHECK_EQ(got.gid, getgid(), what);
}

static char name[108];
static int stop[2];

/* A process that connects, and waits to be ended by an end of file. */
static pid_t visitor(void)
{
    pid_t pid = SYS(fork());
    if (pid)
        return pid;
    close(stop[1]);
    int client = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(connect_to(client, name));
    put_with(client, "visit", NULL, 0, getpid());
    char byte;
    if (recv(client, &byte, 1, 0) == 1)
        CHECK_EQ(peer_of(client).pid, getppid(), "SO_PEERCRED of a visitor");
    while (read(stop[0], &byte, 1) == -1 && errno == EINTR)
        continue;
    _exit(0);
}

int main(void)
{
    guest_begin();
    guest_path(name, sizeof(name), "door");
    int pair[2], made[2];
    SYS(pipe(stop));
    /* A pair that a child has made, which ends. */
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, made));
    int door = bound(SOCK_STREAM, name);
    SYS(listen(door, 8));
    pid_t child = visitor();
    int server = SYS(accept(door, NULL, NULL));
    set_option(server, SO_PASSCRED, 1);
    /* A child that sends, and ends. */
    int packets[2], childs[2];
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
    set_option(packets[1], SO_PASSCRED, 1);
    pid_t sender = SYS(fork());
    if (!sender) {
        SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, childs));
        put_with(packets[0], "pair", childs, 2, 0);
        put_with(packets[0], "of a child", NULL, 0, 0);
        char byte;
        close(stop[1]);
        while (read(stop[0], &byte, 1) == -1 && errno == EINTR)
            continue;
        _exit(0);
    }
    struct ucred cred;
    struct pollfd arrived = {.fd = packets[1], .events = POLLIN};
    SYS(poll(&arrived, 1, -1));
    CHECK_EQ(take_with(packets[1], "pair", childs, &cred), 2, "descriptors of a child");
    want_cred(cred, sender, "sender of the pair");
    struct pollfd visit = {.fd = server, .events = POLLIN};
    SYS(poll(&visit, 1, -1));
    SYS(poll(&arrived, 1, -1));
    int first = 1;
    guest_ready();
    do {
        put_with(packets[0], "mine", NULL, 0, 0);
        if (!guest_running())
            break;
        want_cred(peer_of(server), child, "SO_PEERCRED of a connection");
        want_cred(peer_of(door), getpid(), "SO_PEERCRED of a listening socket");
        want_cred(peer_of(pair[0]), getpid(), "SO_PEERCRED of a pair");
        want_cred(peer_of(made[1]), getpid(), "SO_PEERCRED of a pair of datagrams");
        want_cred(peer_of(childs[0]), sender, "SO_PEERCRED of a pair that a child has made");
        want_cred(peer_of(childs[1]), sender, "SO_PEERCRED of a pair that a child has made");
        if (first) {
            take_with(server, "visit", NULL, &cred);
            want_cred(cred, child, "sender of a stream");
            take_with(packets[1], "of a child", NULL, &cred);
            want_cred(cred, sender, "another sender");
        }
        first = 0;
        take_with(packets[1], "mine", NULL, &cred);
        want_cred(cred, getpid(), "sender of a packet");
    } while (guest_running());
    put(server, "!");
    SYS(close(stop[1]));
    for (int i = 0; i < 2; i++) {
        int status = -1;
        SYS(wait(&status));
        CHECK_EQ(status, 0, "status of a child");
    }
    SYS(unlink(name));
    guest_success();
}
