/* Record locks (F_SETLK): each process has its own ranges, children do not inherit them. */
#include "guest.h"
#include <sys/wait.h>

static char path[256];
static int fd;

static struct flock range(short type, off_t start, off_t len)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
}

static void lock(short type, off_t start, off_t len)
{
    struct flock want = range(type, start, len);
    SYS(fcntl(fd, F_SETLK, &want));
}

/* Who has a lock that is in the way of this one? */
static void expect(short type, off_t start, off_t len, short held, pid_t by, const char *what)
{
    struct flock got = range(type, start, len);
    SYS(fcntl(fd, F_GETLK, &got));
    CHECK_EQ(got.l_type, held, what);
    if (held != F_UNLCK)
        CHECK_EQ(got.l_pid, by, what);
}

int main(void)
{
    guest_begin();
    fd = SYS(open(guest_path(path, sizeof(path), "locked"), O_RDWR | O_CREAT, 0600));
    int ask[2], answer[2];
    SYS(pipe(ask));
    SYS(pipe(answer));
    lock(F_WRLCK, 0, 10);
    lock(F_RDLCK, 20, 10);
    /* A range in the middle with another type. */
    lock(F_WRLCK, 24, 2);
    /* Up to the end of the file, wherever that is. */
    lock(F_WRLCK, 1000, 0);
    pid_t parent = getpid(), child = SYS(fork());
    if (child == 0) {
        char what;
        close(ask[1]);
        lock(F_WRLCK, 100, 50);
        lock(F_RDLCK, 20, 2);
        SYS(write(answer[1], "", 1));
        while (SYS(read(ask[0], &what, 1)) == 1) {
            expect(F_RDLCK, 0, 10, F_WRLCK, parent, "the parent's write lock");
            expect(F_WRLCK, 20, 2, F_RDLCK, parent, "the parent's read lock");
            expect(F_RDLCK, 20, 4, F_UNLCK, 0, "a read lock beside a read lock");
            expect(F_RDLCK, 24, 2, F_WRLCK, parent, "the parent's lock in the middle");
            expect(F_RDLCK, 26, 4, F_UNLCK, 0, "a read lock behind the middle");
            expect(F_RDLCK, 1 << 30, 1, F_WRLCK, parent, "the parent's lock to the end");
            expect(F_WRLCK, 10, 10, F_UNLCK, 0, "between the locks");
            SYS(write(answer[1], &what, 1));
        }
        _exit(0);
    }
    char what;
    SYS(read(answer[0], &what, 1));
    guest_ready();
    do {
        expect(F_RDLCK, 100, 1, F_WRLCK, child, "the child's write lock");
        expect(F_RDLCK, 149, 1, F_WRLCK, child, "the last byte of the child's lock");
        expect(F_WRLCK, 150, 850, F_UNLCK, 0, "behind the child's lock");
        expect(F_WRLCK, 20, 2, F_RDLCK, child, "the child's read lock");
        expect(F_WRLCK, 22, 8, F_UNLCK, 0, "own locks");
        SYS(write(ask[1], "x", 1));
        CHECK_EQ(SYS(read(answer[0], &what, 1)), 1, "answer of the child");
    } while (guest_running());
    close(ask[1]);
    SYS(waitpid(child, NULL, 0));
    expect(F_WRLCK, 0, 0, F_UNLCK, 0, "after the child has ended");
    guest_success();
}
