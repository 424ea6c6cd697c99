/* Processes of the job that wait for each other's locks: flock, F_SETLKW and F_OFD_SETLKW. Each
 * turn one holder lets go, and exactly the waiter gets the lock. */
#include "guest.h"
#include <sys/file.h>
#include <sys/wait.h>

enum { KINDS = 3 };

static char path[KINDS][256];
static volatile int *got;

static int take(int kind, int fd, int how)
{
    struct flock all = {.l_type = (short)(how ? F_WRLCK : F_UNLCK), .l_whence = SEEK_SET};
    switch (kind) {
    case 0:
        return flock(fd, how ? LOCK_EX : LOCK_UN);
    case 1:
        return fcntl(fd, F_SETLKW, &all);
    default:
        return fcntl(fd, F_OFD_SETLKW, &all);
    }
}

/* Waits for the lock, says so, and gives it back when asked. */
__attribute__((noreturn)) static void wait_for_locks(int kind, int go)
{
    char what;
    int fd = SYS(open(path[kind], O_RDWR));
    while (SYS(read(go, &what, 1)) == 1) {
        SYS(take(kind, fd, 1));
        got[kind]++;
        SYS(take(kind, fd, 0));
    }
    _exit(0);
}

int main(void)
{
    guest_begin();
    got = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(got != MAP_FAILED, "mmap: %s", strerror(errno));
    int fd[KINDS], go[KINDS];
    pid_t child[KINDS];
    for (int kind = 0; kind < KINDS; kind++) {
        char name[16];
        int ends[2];
        snprintf(name, sizeof(name), "wait%d", kind);
        guest_path(path[kind], sizeof(path[kind]), name);
        fd[kind] = SYS(open(path[kind], O_RDWR | O_CREAT | O_CLOEXEC, 0600));
        SYS(take(kind, fd[kind], 1));
        SYS(pipe(ends));
        child[kind] = SYS(fork());
        if (child[kind] == 0) {
            close(ends[1]);
            /* A flock lock would be shared. */
            for (int n = 0; n <= kind; n++)
                close(fd[n]);
            for (int n = 0; n < kind; n++)
                close(go[n]);
            wait_for_locks(kind, ends[0]);
        }
        close(ends[0]);
        go[kind] = ends[1];
        SYS(write(go[kind], "x", 1));
    }
    guest_ready();
    int turns = 0, want = 0;
    do {
        for (int kind = 0; kind < KINDS; kind++)
            CHECK_EQ(got[kind], want, "locks that a waiter has got");
        if (++turns % 4)
            continue;
        want++;
        for (int kind = 0; kind < KINDS; kind++) {
            SYS(take(kind, fd[kind], 0));
            while (got[kind] < want)
                usleep(1000);
            SYS(take(kind, fd[kind], 1));
            SYS(write(go[kind], "x", 1));
        }
    } while (guest_running());
    for (int kind = 0; kind < KINDS; kind++) {
        close(go[kind]);
        SYS(take(kind, fd[kind], 0));
        SYS(waitpid(child[kind], NULL, 0));
        CHECK_EQ(got[kind], want + 1, "the last lock");
    }
    guest_success();
}
