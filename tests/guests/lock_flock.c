/* flock(2): an exclusive lock that parent and child share, a shared one, and one that is
 * converted; others must stay out. */
#include "guest.h"
#include <sys/file.h>
#include <sys/wait.h>

static char path[3][256];

static int open_again(int n)
{
    return SYS(open(path[n], O_RDWR | O_CLOEXEC));
}

/* Is the lock refused to a description of its own? */
static void check_refused(int n, int how, int refused, const char *what)
{
    int fd = open_again(n);
    int got = flock(fd, how | LOCK_NB);
    CHECK(got == 0 || errno == EWOULDBLOCK, "%s: %s", what, strerror(errno));
    CHECK_EQ(got != 0, refused, what);
    close(fd);
}

int main(void)
{
    guest_begin();
    int fd[3];
    for (int n = 0; n < 3; n++) {
        char name[16];
        snprintf(name, sizeof(name), "lock%d", n);
        guest_path(path[n], sizeof(path[n]), name);
        fd[n] = SYS(open(path[n], O_RDWR | O_CREAT, 0600));
    }
    SYS(flock(fd[0], LOCK_EX));
    SYS(flock(fd[1], LOCK_SH));
    /* Only the child holds this one's descriptor. */
    int ask[2], answer[2];
    SYS(pipe(ask));
    SYS(pipe(answer));
    pid_t child = SYS(fork());
    if (child == 0) {
        char what;
        close(ask[1]);
        SYS(flock(fd[2], LOCK_EX));
        SYS(write(answer[1], "", 1));
        while (SYS(read(ask[0], &what, 1)) == 1)
            SYS(write(answer[1], &what, 1));
        _exit(0);
    }
    char what;
    SYS(read(answer[0], &what, 1));
    SYS(close(fd[2]));
    guest_ready();
    int exclusive = 1;
    do {
        check_refused(0, LOCK_EX, 1, "another exclusive lock");
        check_refused(0, LOCK_SH, 1, "a shared lock beside the exclusive one");
        check_refused(1, LOCK_EX, 1, "an exclusive lock beside the shared one");
        check_refused(1, LOCK_SH, exclusive == 2, "a shared lock beside the second");
        check_refused(2, LOCK_SH, 1, "a lock beside the child's");
        /* Converted again and again. */
        exclusive = exclusive == 1 ? 2 : 1;
        SYS(flock(fd[1], exclusive == 2 ? LOCK_EX | LOCK_NB : LOCK_SH | LOCK_NB));
        SYS(write(ask[1], "x", 1));
        CHECK_EQ(SYS(read(answer[0], &what, 1)), 1, "answer of the child");
    } while (guest_running());
    SYS(flock(fd[0], LOCK_UN));
    check_refused(0, LOCK_EX, 0, "a lock after the release");
    close(ask[1]);
    SYS(waitpid(child, NULL, 0));
    check_refused(2, LOCK_EX, 0, "a lock after the child has ended");
    guest_success();
}
