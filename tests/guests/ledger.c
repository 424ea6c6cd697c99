/* For the tests of failing moves: one line per turn, `number`, appended to $GUEST_LEDGER. Two
 * copies that run at once would write a number twice; a lost state would go back. Two locks on
 * the ledger are the program's at every turn. */
/* A move that fails because of a cut link takes its time; another host's clock is days ahead. */
#define MAX_CLOCK_JUMP_NS (300 * 1000000000ULL)
#include "guest.h"
#include <sys/file.h>

/* The locks keep another description out. Closing that would release the record lock. */
static void check_locks(int other)
{
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    CHECK(flock(other, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK, "flock was lost");
    SYS(fcntl(other, F_OFD_GETLK, &all));
    CHECK_EQ(all.l_type, F_WRLCK, "the record lock");
    CHECK_EQ(all.l_pid, getpid(), "owner of the record lock");
}

#ifdef LEDGER_CHILD
#include <sys/prctl.h>
#include <sys/wait.h>

/* A child that has 8 MiB in common with its parent, and waits until that closes the pipe. The
 * parent has another name then. */
static pid_t begin_child(char **common, int *until)
{
    enum { SIZE = 8 << 20 };
    int ends[2];
    char nothing;
    *common = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(*common != MAP_FAILED, "mmap: %s", strerror(errno));
    guest_fill(*common, SIZE, 7);
    SYS(pipe2(ends, O_CLOEXEC));
    pid_t child = SYS(fork());
    if (child == 0) {
        close(ends[1]);
        CHECK_EQ(SYS(read(ends[0], &nothing, 1)), 0, "the parent");
        guest_verify(*common, SIZE, 7, "memory in common");
        _exit(0);
    }
    close(ends[0]);
    *until = ends[1];
    SYS(prctl(PR_SET_NAME, "ledger"));
    return child;
}
#endif

int main(void)
{
    guest_begin();
#ifdef LEDGER_CHILD
    char *common;
    int until, status;
    pid_t child = begin_child(&common, &until);
#endif
    char line[32];
    int fd = SYS(open(guest_env("GUEST_LEDGER"), O_WRONLY | O_CREAT | O_APPEND, 0666));
    int other = SYS(open(guest_env("GUEST_LEDGER"), O_WRONLY));
    struct flock all = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    SYS(flock(fd, LOCK_EX));
    SYS(fcntl(fd, F_SETLK, &all));
    guest_ready();
    unsigned long long n = 0;
    do {
        int size = snprintf(line, sizeof(line), "%llu\n", n++);
        CHECK_EQ(write(fd, line, (size_t)size), size, "write to the ledger");
        check_locks(other);
    } while (guest_running());
#ifdef LEDGER_CHILD
    guest_verify(common, 8 << 20, 7, "memory in common");
    close(until);
    CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "the child");
    CHECK_EQ(status, 0, "its status");
#endif
    guest_success();
}
