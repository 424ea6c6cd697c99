/* Open-file-description locks: two descriptions of one process keep each other out, a child that
 * has inherited one of them owns its lock as well. */
#include "guest.h"
#include <sys/wait.h>

static struct flock range(short type, off_t start, off_t len)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
}

static void expect(int fd, short type, off_t start, short held, const char *what)
{
    struct flock got = range(type, start, 1);
    SYS(fcntl(fd, F_OFD_GETLK, &got));
    CHECK_EQ(got.l_type, held, what);
    if (held != F_UNLCK)
        CHECK_EQ(got.l_pid, -1, what);
}

int main(void)
{
    guest_begin();
    char path[256];
    guest_path(path, sizeof(path), "locked");
    int one = SYS(open(path, O_RDWR | O_CREAT, 0600)), other = SYS(open(path, O_RDWR));
    struct flock first = range(F_WRLCK, 5, 10), second = range(F_RDLCK, 50, 0);
    SYS(fcntl(one, F_OFD_SETLK, &first));
    SYS(fcntl(other, F_OFD_SETLK, &second));
    int ask[2], answer[2];
    SYS(pipe(ask));
    SYS(pipe(answer));
    pid_t child = SYS(fork());
    if (child == 0) {
        char what;
        close(ask[1]);
        close(other);
        while (SYS(read(ask[0], &what, 1)) == 1) {
            expect(one, F_WRLCK, 5, F_UNLCK, "the inherited lock");
            expect(one, F_WRLCK, 60, F_RDLCK, "the lock of the other description");
            SYS(write(answer[1], &what, 1));
        }
        _exit(0);
    }
    SYS(close(one));
    guest_ready();
    do {
        char what;
        expect(other, F_RDLCK, 5, F_WRLCK, "the child's lock");
        expect(other, F_RDLCK, 14, F_WRLCK, "the end of the child's lock");
        expect(other, F_WRLCK, 15, F_UNLCK, "behind the child's lock");
        expect(other, F_WRLCK, 4, F_UNLCK, "before the child's lock");
        expect(other, F_WRLCK, 1 << 20, F_UNLCK, "the own lock");
        SYS(write(ask[1], "x", 1));
        CHECK_EQ(SYS(read(answer[0], &what, 1)), 1, "answer of the child");
    } while (guest_running());
    close(ask[1]);
    SYS(waitpid(child, NULL, 0));
    expect(other, F_WRLCK, 5, F_UNLCK, "after the child has ended");
    guest_success();
}
