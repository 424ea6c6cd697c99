/* Processes that share descriptors, memory and handlers by clone(2) and what of them is their own:
 * the program in /proc/PID/exe, seen by each and by the others, and the name. Each makes children
 * all the time. */
#include "shared.h"
#include <sys/prctl.h>

enum { EVERYTHING = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND, STACK = 256 << 10 };

static char program[256];
/* Who has done the turn, in memory that all of them map. */
static struct board {
    volatile long done[3];
    volatile pid_t pids[3];
} *board;

static void is_program_of(pid_t pid)
{
    char path[64], link[256] = "";
    snprintf(path, sizeof(path), "/proc/%d/exe", pid);
    ssize_t len = readlink(path, link, sizeof(link) - 1);
    CHECK(len > 0, "%s: %s", path, strerror(errno));
    CHECK(!strcmp(link, program), "%s is %s instead of %s", path, link, program);
}

static void look(const char *name)
{
    char now[16] = "";
    is_program_of(getpid());
    for (int n = 0; n < 3; n++)
        is_program_of(board->pids[n]);
    SYS(prctl(PR_GET_NAME, now));
    CHECK(!strcmp(now, name), "its name is %s instead of %s", now, name);
    pid_t child = SYS(fork());
    if (child == 0) {
        is_program_of(getpid());
        _exit(0);
    }
    shared_reap(child);
}

static int follow(int n, const char *name)
{
    SYS(prctl(PR_SET_NAME, name));
    board->pids[n] = getpid();
    while (!board->pids[1] || !board->pids[2])
        shared_nap();
    for (long seen = 0; !shared->over;) {
        long turn = shared->turn;
        if (turn != seen) {
            look(name);
            board->done[n] = seen = turn;
        }
        shared_nap();
    }
    _exit(0);
}

static int files(void *unused)
{
    (void)unused;
    return follow(1, "files");
}

static int all(void *unused)
{
    (void)unused;
    return follow(2, "all");
}

static char *stack_top(void)
{
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
    return stack + STACK;
}

static void turn(long n)
{
    shared->turn = n;
    while (board->done[1] != n || board->done[2] != n) {
        int status = 0;
        CHECK_EQ(SYS(waitpid(-1, &status, WNOHANG)), 0, "a child ended early");
        shared_nap();
    }
    look("first");
}

int main(void)
{
    guest_begin();
    shared_begin();
    SYS(readlink("/proc/self/exe", program, sizeof(program) - 1));
    board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(board != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(prctl(PR_SET_NAME, "first"));
    board->pids[0] = getpid();
    pid_t one = SYS(clone(files, stack_top(), CLONE_FILES | SIGCHLD, NULL));
    pid_t two = SYS(clone(all, stack_top(), EVERYTHING | SIGCHLD, NULL));
    while (!board->pids[1] || !board->pids[2])
        shared_nap();
    shared_turns(turn);
    shared->over = 1;
    shared_reap(one);
    shared_reap(two);
    guest_success();
}
