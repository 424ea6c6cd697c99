/* Two processes with one descriptor table (CLONE_FILES of clone(2)): what one opens, moves or
 * closes, the other one has, has elsewhere or has no more. A child of fork(2) has a copy. In the
 * end one of them executes another program, which leaves the table. */
#include "shared.h"

enum { FIRST = 20, OTHER = 40, KEPT = 60 };

static char path[256];

static off_t at(int fd)
{
    return lseek(fd, 0, SEEK_CUR);
}

/* Puts a description with an offset that tells the turn at a number. */
static void put(int number, long turn)
{
    int fd = SYS(open(path, O_RDWR));
    SYS(lseek(fd, turn, SEEK_SET));
    SYS(dup2(fd, number));
    SYS(close(fd));
}

/* Sees what the parent has put, takes it away, and puts something elsewhere. */
static void partner(long turn)
{
    CHECK_EQ(at(FIRST), turn, "what the other one has put");
    SYS(close(FIRST));
    put(OTHER, turn + 1000);
    CHECK_EQ(SYS(fcntl(OTHER, F_GETFD)), 0, "flags");
    SYS(fcntl(OTHER, F_SETFD, FD_CLOEXEC));
}

static void witness(long turn)
{
    (void)turn;
    CHECK_EQ(at(FIRST), -1, "nothing of that");
    CHECK_EQ(at(OTHER), -1, "nothing of that");
    CHECK(at(KEPT) >= 0, "the copy");
}

static void turn(long n)
{
    put(FIRST, n);
    shared_turn(n);
    CHECK_EQ(at(FIRST), -1, "it is closed");
    CHECK_EQ(at(OTHER), n + 1000, "what the partner has put");
    CHECK_EQ(SYS(fcntl(OTHER, F_GETFD)), FD_CLOEXEC, "its flags");
    SYS(close(OTHER));
}

static void leave(long n)
{
    (void)n;
    execl("/bin/true", "true", (char *)NULL);
    fail("exec: %s", strerror(errno));
}

int main(void)
{
    guest_begin();
    shared_begin();
    guest_path(path, sizeof(path), "common");
    SYS(close(SYS(open(path, O_CREAT | O_RDWR, 0600))));
    put(KEPT, 7);
    SYS(fcntl(KEPT, F_SETFD, FD_CLOEXEC));
    pid_t other = shared_partner(CLONE_FILES, partner);
    pid_t apart = shared_witness(witness);
    long n = shared_turns(turn);
    shared_end(other, apart);
    CHECK_EQ(at(KEPT), 7, "a descriptor of the table");
    /* Whoever executes a program gets a table of its own. */
    shared->over = 0;
    shared->partner = n - 1;
    shared->turn = n;
    shared_reap(shared_partner(CLONE_FILES, leave));
    CHECK_EQ(at(KEPT), 7, "close-on-exec in the other table");
    SYS(unlink(path));
    guest_success();
}
