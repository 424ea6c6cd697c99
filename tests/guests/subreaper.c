/* PR_SET_CHILD_SUBREAPER: who is one, and that orphans go to the nearest one, also those that
 * become so after a move. */
#include "guest.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static struct {
    volatile int end, ready, wrong;
    volatile pid_t inner, plain, orphan_of_inner, orphan_of_plain;
    volatile pid_t parent_of[2];
} *shared;

static void check_self(int want)
{
    int got = -1;
    SYS(prctl(PR_GET_CHILD_SUBREAPER, &got));
    CHECK_EQ(got, want, "PR_GET_CHILD_SUBREAPER");
}

/* Says who its parent is until it is told to end. */
__attribute__((noreturn)) static void grandchild(int n)
{
    shared->ready++;
    while (shared->end < 2) {
        check_self(0);
        shared->parent_of[n] = getppid();
        usleep(500);
    }
    _exit(0);
}

/* Starts a grandchild, and ends at the first word. */
__attribute__((noreturn)) static void between(int n, volatile pid_t *grand)
{
    pid_t pid = SYS(fork());
    if (pid == 0)
        grandchild(n);
    *grand = pid;
    while (shared->end < 1) {
        check_self(0);
        usleep(500);
    }
    _exit(0);
}

/* A subreaper below the first process. */
__attribute__((noreturn)) static void inner(void)
{
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t child = SYS(fork());
    if (child == 0)
        between(0, &shared->orphan_of_inner);
    shared->ready++;
    int status;
    while (shared->end < 1) {
        check_self(1);
        CHECK_EQ(SYS(waitpid(-1, &status, WNOHANG)), 0, "a child ended early");
        usleep(500);
    }
    CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "the child between");
    CHECK_EQ(SYS(waitpid(shared->orphan_of_inner, &status, 0)), shared->orphan_of_inner, "the orphan");
    CHECK_EQ(status, 0, "its end");
    _exit(0);
}

static void await_parent(int n, pid_t want)
{
    while (shared->parent_of[n] != want) {
        CHECK(shared->parent_of[n] != 1, "an orphan went to pid 1");
        usleep(500);
    }
}

int main(void)
{
    guest_begin();
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t first = SYS(fork());
    if (first == 0)
        inner();
    pid_t second = SYS(fork());
    if (second == 0)
        between(1, &shared->orphan_of_plain);
    while (shared->ready < 3)
        usleep(500);
    await_parent(1, second);
    guest_ready();
    do
        check_self(1);
    while (guest_running());
    shared->end = 1;
    int status;
    CHECK_EQ(SYS(waitpid(second, &status, 0)), second, "the plain child");
    await_parent(1, getpid());
    await_parent(0, first);
    shared->end = 2;
    CHECK_EQ(SYS(waitpid(shared->orphan_of_plain, &status, 0)), shared->orphan_of_plain, "the orphan");
    CHECK_EQ(status, 0, "its end");
    CHECK_EQ(SYS(waitpid(first, &status, 0)), first, "the inner subreaper");
    CHECK_EQ(status, 0, "its end");
    CHECK_EQ(waitpid(-1, &status, WNOHANG), -1, "a child too many");
    guest_success();
}
