/* SO_PASSCRED and SO_PASSPIDFD: who has sent, said by the kernel and by the sender, one message and
 * many at once, looked at and taken; who has made a pair and ended. */
#include "unix.h"
#include <poll.h>
#include <sys/wait.h>

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD 76
#define SO_PEERPIDFD 77
#endif
#ifndef SCM_PIDFD
#define SCM_PIDFD 4
#endif

enum { MANY = 3, ROOM = CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(sizeof(int)) };

struct post {
    struct iovec part;
    char text[16];
    union {
        struct cmsghdr head;
        char space[ROOM];
    } control;
};

static void address_posts(struct post *posts, struct mmsghdr *heads)
{
    memset(heads, 0, MANY * sizeof(*heads));
    for (int i = 0; i < MANY; i++) {
        posts[i].part = (struct iovec){posts[i].text, sizeof(posts[i].text)};
        heads[i].msg_hdr.msg_iov = &posts[i].part;
        heads[i].msg_hdr.msg_iovlen = 1;
        heads[i].msg_hdr.msg_control = &posts[i].control;
        heads[i].msg_hdr.msg_controllen = sizeof(posts[i].control.space);
    }
}

static void send_many(int fd, pid_t as)
{
    struct post posts[MANY];
    struct mmsghdr heads[MANY];
    address_posts(posts, heads);
    for (int i = 0; i < MANY; i++) {
        struct ucred cred = {as, getuid(), getgid()};
        posts[i].part.iov_len = (size_t)i + 1;
        memset(posts[i].text, 'a' + i, sizeof(posts[i].text));
        /* The second one says nothing: the kernel does. */
        if (i == 1) {
            heads[i].msg_hdr.msg_controllen = 0;
            continue;
        }
        posts[i].control.head =
            (struct cmsghdr){CMSG_LEN(sizeof(cred)), SOL_SOCKET, SCM_CREDENTIALS};
        memcpy(CMSG_DATA(&posts[i].control.head), &cred, sizeof(cred));
        heads[i].msg_hdr.msg_controllen = CMSG_SPACE(sizeof(cred));
    }
    CHECK_EQ(SYS(sendmmsg(fd, heads, MANY, 0)), MANY, "sendmmsg");
    for (int i = 0; i < MANY; i++) {
        struct ucred cred;
        CHECK_EQ(heads[i].msg_len, i + 1, "how much of a message was sent");
        memcpy(&cred, CMSG_DATA(&posts[i].control.head), sizeof(cred));
        CHECK(i == 1 || cred.pid == as, "the program's own memory was changed: %d", cred.pid);
    }
}

/* Who is said to have sent. Takes the pidfd that comes along, which leads to PID. */
static void check_sender(struct msghdr *head, pid_t pid, int pidfds, const char *what)
{
    int seen = 0, pidfd = -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(head); c; c = CMSG_NXTHDR(head, c)) {
        struct ucred cred;
        if (c->cmsg_type == SCM_CREDENTIALS) {
            memcpy(&cred, CMSG_DATA(c), sizeof(cred));
            CHECK_EQ(cred.pid, pid, what);
            CHECK_EQ(cred.uid, getuid(), what);
            seen = 1;
        } else if (c->cmsg_type == SCM_PIDFD) {
            memcpy(&pidfd, CMSG_DATA(c), sizeof(pidfd));
        }
    }
    CHECK(seen, "%s: no credentials", what);
    if (pidfds) {
        CHECK(pidfd >= 0, "%s: no pidfd", what);
        CHECK_EQ(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0), 0, what);
        SYS(close(pidfd));
    }
}

static void take_many(int fd, pid_t pid, int pidfds)
{
    struct post posts[MANY];
    struct mmsghdr heads[MANY];
    address_posts(posts, heads);
    CHECK_EQ(SYS(recvmmsg(fd, heads, MANY, MSG_DONTWAIT, NULL)), MANY, "recvmmsg");
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(heads[i].msg_len, i + 1, "length of a message");
        CHECK_EQ(posts[i].text[0], 'a' + i, "text of a message");
        check_sender(&heads[i].msg_hdr, pid, pidfds, "sender of one of many");
    }
}

/* One message; with room for a part of what comes with it only, if SHORT. */
static void take_one(int fd, int flags, pid_t pid, int is_short)
{
    struct post post;
    struct msghdr head = {.msg_iov = &post.part, .msg_iovlen = 1, .msg_control = &post.control};
    post.part = (struct iovec){post.text, sizeof(post.text)};
    head.msg_controllen = is_short ? CMSG_LEN(4) : CMSG_SPACE(sizeof(struct ucred));
    CHECK_EQ(recvmsg(fd, &head, flags | MSG_DONTWAIT), 4, "length of a message");
    if (is_short) {
        pid_t got;
        CHECK(head.msg_flags & MSG_CTRUNC, "not cut off");
        memcpy(&got, CMSG_DATA(&post.control.head), sizeof(got));
        CHECK_EQ(got, pid, "sender in a message that is cut off");
        return;
    }
    check_sender(&head, pid, 0, "sender of one message");
}

int main(void)
{
    guest_begin();
    int many[2], one[2], old[2], stop[2];
    SYS(pipe(stop));
    SYS(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, many));
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, one));
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, old));
    set_option(many[1], SO_PASSCRED, 1);
    set_option(one[1], SO_PASSCRED, 1);
    set_option(old[1], SO_PASSCRED, 1);
    int on = 1;
    int pidfds = setsockopt(many[1], SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on)) == 0;
    /* One makes a pair and ends, another one sends and lives on. */
    int made[2];
    pid_t dead = SYS(fork());
    if (!dead) {
        SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, made));
        put_with(one[0], "pair", made, 2, 0);
        _exit(0);
    }
    SYS(waitpid(dead, NULL, 0));
    struct ucred maker = {0};
    CHECK_EQ(take_with(one[1], "pair", made, &maker), 2, "descriptors of a child that has ended");
    CHECK_EQ(maker.pid, dead, "a sender that has ended");
    pid_t alive = SYS(fork());
    if (!alive) {
        char byte;
        close(stop[1]);
        CHECK_EQ(write(old[0], "live", 4), 4, "write");
        while (read(stop[0], &byte, 1) == -1 && errno == EINTR)
            continue;
        _exit(0);
    }
    struct pollfd last = {.fd = old[1], .events = POLLIN};
    SYS(poll(&last, 1, -1));
    int turn = 0;
    guest_ready();
    do {
        send_many(many[0], getpid());
        CHECK_EQ(SYS(write(one[0], "mine", 4)), 4, "write");
        CHECK_EQ(SYS(write(one[0], "more", 4)), 4, "write");
        if (!guest_running())
            break;
        for (int i = 0; i < 2; i++)
            CHECK_EQ(peer_of(made[i]).pid, dead, "SO_PEERCRED of a pair of a dead process");
        take_many(many[1], getpid(), pidfds);
        take_one(one[1], MSG_PEEK, getpid(), 0);
        take_one(one[1], 0, getpid(), 0);
        take_one(one[1], 0, getpid(), 1);
        if (++turn == 40) {
            struct ucred cred = {0};
            take_with(old[1], "live", NULL, &cred);
            CHECK_EQ(cred.pid, alive, "a sender that lives");
        }
        struct ucred stranger = {getpid() + 1, getuid(), getgid()};
        if (geteuid() != 0) {
            struct iovec part = {"x", 1};
            union {
                struct cmsghdr head;
                char space[CMSG_SPACE(sizeof(stranger))];
            } control = {.head = {CMSG_LEN(sizeof(stranger)), SOL_SOCKET, SCM_CREDENTIALS}};
            struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                                  .msg_controllen = sizeof(control)};
            memcpy(CMSG_DATA(&control.head), &stranger, sizeof(stranger));
            CHECK_EQ(sendmsg(one[0], &head, 0), -1, "a message in another one's name");
        }
    } while (guest_running());
    SYS(close(stop[1]));
    int status = -1;
    SYS(waitpid(alive, &status, 0));
    CHECK_EQ(status, 0, "status of a child");
    guest_success();
}
