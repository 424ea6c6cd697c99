/* What the guests with Unix sockets share. */
#ifndef GUEST_UNIX_H
#define GUEST_UNIX_H
#include "guest.h"
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

static inline void put(int fd, const char *text)
{
    CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text), "send");
}

/* Receives once, without waiting; wants exactly this. */
static inline void want(int fd, const char *text, const char *what)
{
    char got[512];
    ssize_t n = recv(fd, got, sizeof(got), MSG_DONTWAIT);
    CHECK(n >= 0, "%s: wanted \"%s\": %s", what, text, strerror(errno));
    CHECK((size_t)n == strlen(text) && !memcmp(got, text, (size_t)n),
          "%s: wanted \"%s\", got \"%.*s\"", what, text, (int)n, got);
}

static inline void want_nothing(int fd, const char *what)
{
    char got[64];
    ssize_t n = recv(fd, got, sizeof(got), MSG_DONTWAIT);
    CHECK(n == -1 && errno == EAGAIN, "%s: got %zd bytes, \"%.*s\" (%s)", what, n,
          n > 0 ? (int)n : 0, got, strerror(errno));
}

static inline int option(int fd, int name)
{
    int value = -1;
    socklen_t size = sizeof(value);
    SYS(getsockopt(fd, SOL_SOCKET, name, &value, &size));
    return value;
}

static inline void set_option(int fd, int name, int value)
{
    SYS(setsockopt(fd, SOL_SOCKET, name, &value, sizeof(value)));
}

static inline struct ucred peer_of(int fd)
{
    struct ucred cred;
    socklen_t size = sizeof(cred);
    SYS(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &size));
    return cred;
}

/* An address; an abstract name begins with '@'. */
static inline socklen_t address(struct sockaddr_un *at, const char *name)
{
    memset(at, 0, sizeof(*at));
    at->sun_family = AF_UNIX;
    CHECK(strlen(name) < sizeof(at->sun_path), "%s is too long", name);
    strcpy(at->sun_path, name);
    size_t len = strlen(name) + (name[0] != '@');
    if (name[0] == '@')
        at->sun_path[0] = 0;
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
}

static inline int bound(int type, const char *name)
{
    struct sockaddr_un at;
    int fd = SYS(socket(AF_UNIX, type, 0));
    socklen_t len = address(&at, name);
    SYS(bind(fd, (struct sockaddr *)&at, len));
    return fd;
}

static inline int connect_to(int fd, const char *name)
{
    struct sockaddr_un at;
    socklen_t len = address(&at, name);
    return connect(fd, (struct sockaddr *)&at, len);
}

/* getsockname or getpeername gives this name ("" for none). */
static inline void want_name(int (*ask)(int, struct sockaddr *, socklen_t *), int fd,
                             const char *name, const char *what)
{
    struct sockaddr_un got = {0}, at;
    socklen_t len = sizeof(got), wanted = offsetof(struct sockaddr_un, sun_path);
    if (*name)
        wanted = address(&at, name);
    SYS(ask(fd, (struct sockaddr *)&got, &len));
    CHECK_EQ(len, wanted, what);
    CHECK(!*name || !memcmp(got.sun_path, at.sun_path, len - offsetof(struct sockaddr_un, sun_path)),
          "%s: another name: %s", what, got.sun_path);
}

/* Sends TEXT with COUNT descriptors, and as process PID if that is not 0. */
static inline void put_with(int fd, const char *text, const int *fds, size_t count, pid_t pid)
{
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(16 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
    struct iovec part = {(void *)(uintptr_t)text, strlen(text)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control};
    memset(&control, 0, sizeof(control));
    message.msg_controllen = sizeof(control);
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    size_t used = 0;
    if (count) {
        *head = (struct cmsghdr){CMSG_LEN(count * sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(head), fds, count * sizeof(int));
        used += CMSG_SPACE(count * sizeof(int));
        head = CMSG_NXTHDR(&message, head);
    }
    if (pid) {
        struct ucred cred = {pid, getuid(), getgid()};
        *head = (struct cmsghdr){CMSG_LEN(sizeof(cred)), SOL_SOCKET, SCM_CREDENTIALS};
        memcpy(CMSG_DATA(head), &cred, sizeof(cred));
        used += CMSG_SPACE(sizeof(cred));
    }
    message.msg_controllen = used;
    CHECK_EQ(SYS(sendmsg(fd, &message, 0)), strlen(text), "sendmsg");
}

/* Receives TEXT, the descriptors that come with it (their number is returned) and the sender. */
static inline size_t take_with(int fd, const char *text, int *fds, struct ucred *cred)
{
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(16 * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
    } control;
    char got[512];
    struct iovec part = {got, sizeof(got)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    CHECK(n >= 0, "recvmsg of \"%s\": %s", text, strerror(errno));
    CHECK((size_t)n == strlen(text) && !memcmp(got, text, (size_t)n), "wanted \"%s\", got \"%.*s\"",
          text, (int)n, got);
    CHECK(!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)), "truncated: %#x", message.msg_flags);
    size_t count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_type == SCM_RIGHTS) {
            count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(c), count * sizeof(int));
        } else if (c->cmsg_type == SCM_CREDENTIALS && cred) {
            memcpy(cred, CMSG_DATA(c), sizeof(*cred));
        }
    }
    return count;
}
#endif
