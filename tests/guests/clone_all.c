/* A tree of processes that share memory, descriptors, directory and handlers in several ways: a
 * child with everything, which has a session of its own and a child of its own; a grandchild that
 * shares the descriptors of its grandparent, but not of its parent. The first one has a thread. */
#include "shared.h"
#include <pthread.h>

enum { EVERYTHING = CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND, STACK = 256 << 10 };
enum { NUMBER = 70 };

static volatile long told, thread_told;
/* Processes that have done the turn, in memory that all of them map. */
static struct board {
    volatile long far, whole, below;
    volatile pid_t pids[2];
} *board;

static int offset(int fd)
{
    return (int)lseek(fd, 0, SEEK_CUR);
}

static void *thread(void *unused)
{
    while (!shared->over) {
        thread_told = told;
        shared_nap();
    }
    return unused;
}

/* A child of fork(2) of who has everything: nothing is shared but what fork leaves. */
static void below(void)
{
    while (!shared->over) {
        CHECK_EQ(told, 1, "a copy");
        CHECK_EQ(getsid(0), getppid(), "the session of its parent");
        board->below = shared->turn;
        shared_nap();
    }
    _exit(0);
}

static int whole(void *unused)
{
    (void)unused;
    SYS(setsid());
    board->pids[0] = getpid();
    told = 1;
    pid_t child = SYS(fork());
    if (child == 0)
        below();
    for (long seen = 0; !shared->over;) {
        long turn = shared->turn;
        if (turn == seen) {
            shared_nap();
            continue;
        }
        CHECK_EQ(getsid(0), board->pids[0], "its session");
        CHECK_EQ(getpid(), board->pids[0], "its number");
        CHECK_EQ(offset(NUMBER), (int)turn, "the common descriptor");
        told = turn + 1;
        board->whole = seen = turn;
    }
    shared_reap(child);
    _exit(0);
}

static int far(void *unused)
{
    (void)unused;
    for (long seen = 0; !shared->over;) {
        long turn = shared->turn;
        if (turn != seen) {
            CHECK_EQ(offset(NUMBER), (int)turn, "the descriptor of its grandparent");
            board->far = seen = turn;
        }
        shared_nap();
    }
    _exit(0);
}

static char *stack_top(void)
{
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
    return stack + STACK;
}

/* Shares the descriptors of its parent until it has a child that does so too. */
static int between(void *unused)
{
    (void)unused;
    pid_t child = SYS(clone(far, stack_top(), CLONE_FILES | SIGCHLD, NULL));
    SYS(unshare(CLONE_FILES));
    SYS(close(NUMBER));
    board->pids[1] = child;
    while (!shared->over) {
        CHECK_EQ(offset(NUMBER), -1, "no such descriptor");
        shared_nap();
    }
    shared_reap(child);
    _exit(0);
}

static void put(long turn)
{
    SYS(lseek(NUMBER, turn, SEEK_SET));
    /* At another description of the same number. */
    int fd = SYS(dup(NUMBER));
    SYS(close(NUMBER));
    SYS(dup2(fd, NUMBER));
    SYS(close(fd));
}

static void turn(long n)
{
    put(n);
    shared->turn = n;
    while (board->whole != n || board->far != n || board->below != n || thread_told != n + 1) {
        CHECK_EQ(SYS(waitpid(-1, NULL, WNOHANG)), 0, "a child ended early");
        shared_nap();
    }
    CHECK_EQ(told, n + 1, "what the child has written");
}

int main(void)
{
    char path[256];
    pthread_t id;
    guest_begin();
    shared_begin();
    board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(board != MAP_FAILED, "mmap: %s", strerror(errno));
    int fd = SYS(open(guest_path(path, sizeof(path), "file"), O_CREAT | O_RDWR, 0600));
    SYS(dup2(fd, NUMBER));
    SYS(close(fd));
    pid_t middle = SYS(clone(between, stack_top(), CLONE_FILES | SIGCHLD, NULL));
    while (!board->pids[1])
        shared_nap();
    CHECK(!pthread_create(&id, NULL, thread, NULL), "thread");
    pid_t one = SYS(clone(whole, stack_top(), EVERYTHING | SIGCHLD, NULL));
    while (!told)
        shared_nap();
    shared_turns(turn);
    shared->over = 1;
    shared_reap(one);
    shared_reap(middle);
    pthread_join(id, NULL);
    SYS(unlink(path));
    guest_success();
}
