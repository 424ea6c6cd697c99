/* Memfds mapped by a parent and its children: one whose descriptor only the parent keeps, one that
 * only a child keeps, one that nobody keeps, and one that was passed on over a socket. */
#include "crew.h"
#include <sys/socket.h>

#define SIZE (16 * PAGE)
enum { OF_PARENT, OF_CHILD, OF_NOBODY, PASSED, KINDS };

static uint64_t *view[KINDS];
static int fds[KINDS], sockets[2];

static uint64_t *map(int fd)
{
    void *at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    return at;
}

static void pass(int fd)
{
    char byte = 'x', space[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
                         .msg_controllen = sizeof(space)};
    struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
    *head = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(head), &fd, sizeof(fd));
    SYS(sendmsg(sockets[0], &msg, 0));
}

static int take(void)
{
    char byte, space[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = space,
                         .msg_controllen = sizeof(space)};
    SYS(recvmsg(sockets[1], &msg, 0));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    return fd;
}

static long serve(int n, char question)
{
    if (question == 'k') {
        if (n != 0)
            return 0;
        close(fds[OF_PARENT]);
        close(fds[OF_NOBODY]);
        fds[PASSED] = take();
        view[PASSED] = map(fds[PASSED]);
        close(sockets[0]);
        close(sockets[1]);
        return 0;
    }
    if (question == 'o') {
        for (int kind = 0; kind < KINDS; kind++)
            if (kind != OF_CHILD)
                close(fds[kind]);
        close(sockets[0]);
        close(sockets[1]);
        return 0;
    }
    for (int kind = 0; kind < KINDS; kind++)
        if (view[kind])
            __atomic_add_fetch(&view[kind][SIZE / 8 - 1], 1, __ATOMIC_SEQ_CST);
    if (n == 0 && question == 'f') {
        uint64_t word;
        CHECK_EQ(pread(fds[OF_CHILD], &word, 8, SIZE - 8), 8, "read of a memfd");
        return (long)word;
    }
    return 0;
}

int main(void)
{
    guest_begin();
    SYS(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets));
    for (int kind = 0; kind < KINDS; kind++) {
        fds[kind] = SYS(memfd_create("shared", MFD_CLOEXEC));
        SYS(ftruncate(fds[kind], SIZE));
        if (kind != PASSED)
            view[kind] = map(fds[kind]);
    }
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    view[PASSED] = map(fds[PASSED]);
    pass(fds[PASSED]);
    crew_ask(&mates[0], 'k');
    crew_ask(&mates[1], 'o');
    for (int kind = 0; kind < KINDS; kind++) {
        guest_fill(view[kind], SIZE - PAGE, (uint64_t)kind);
        if (kind != OF_PARENT)
            close(fds[kind]);
    }
    close(sockets[0]);
    close(sockets[1]);
    guest_ready();
    uint64_t turn = 0;
    do {
        turn++;
        CHECK_EQ(crew_ask(&mates[0], 'f'), 2 * turn - 1, "a word in the memfd of the child");
        crew_ask(&mates[1], 'f');
        for (int kind = 0; kind < KINDS; kind++) {
            uint64_t want = kind == PASSED ? turn : 2 * turn;
            CHECK_EQ(view[kind][SIZE / 8 - 1], want, "a word that children count up");
            guest_verify(view[kind], SIZE - PAGE, (uint64_t)kind, "a memfd");
        }
        uint64_t word;
        CHECK_EQ(pread(fds[OF_PARENT], &word, 8, SIZE - 8), 8, "read of a memfd");
        CHECK_EQ(word, 2 * turn, "a word read from the memfd of the parent");
    } while (guest_running());
    crew_end(&mates[0]);
    crew_end(&mates[1]);
    guest_success();
}
