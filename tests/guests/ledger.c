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

int main(void)
{
    guest_begin();
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
    guest_success();
}
