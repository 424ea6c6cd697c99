/* Parent-death signals (PR_SET_PDEATHSIG): none comes while the parent lives, whoever built the
 * process anew, and it comes when the true parent dies. */
#include "guest.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static struct {
    volatile int heirs, deaths, early, end_parent;
    volatile pid_t parent_after[2];
} *shared;

static volatile sig_atomic_t came;

static void on_signal(int sig)
{
    came = sig;
}

static void check_set(int want)
{
    int got = -1;
    SYS(prctl(PR_GET_PDEATHSIG, &got));
    CHECK_EQ(got, want, "PR_GET_PDEATHSIG");
}

/* Waits for the death of its parent. */
__attribute__((noreturn)) static void heir(int n, int sig)
{
    SYS(prctl(PR_SET_PDEATHSIG, sig));
    shared->heirs++;
    while (!came) {
        check_set(sig);
        if (!shared->end_parent && came)
            shared->early++;
        usleep(500);
    }
    if (!shared->end_parent)
        shared->early++;
    CHECK_EQ(came, sig, "the parent-death signal");
    while (getppid() == shared->parent_after[n])
        usleep(500);
    shared->deaths++;
    _exit(0);
}

__attribute__((noreturn)) static void parent(void)
{
    for (int n = 0; n < 2; n++) {
        shared->parent_after[n] = getpid();
        if (SYS(fork()) == 0)
            heir(n, n ? SIGUSR2 : 40);
    }
    while (!shared->end_parent)
        usleep(500);
    _exit(0);
}

int main(void)
{
    guest_begin();
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
    struct sigaction act = {.sa_handler = on_signal};
    for (int sig = SIGHUP; sig <= 40; sig++)
        if (sig == SIGUSR1 || sig == SIGUSR2 || sig == 40)
            SYS(sigaction(sig, &act, NULL));
    /* The two heirs become children of this process. */
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t child = SYS(fork());
    if (child == 0)
        parent();
    SYS(prctl(PR_SET_PDEATHSIG, SIGUSR1));
    while (shared->heirs < 2)
        usleep(500);
    guest_ready();
    do {
        check_set(SIGUSR1);
        CHECK(!came, "signal %d although the parent lives", came);
        CHECK(!shared->early, "a parent-death signal although the parent lives");
    } while (guest_running());
    shared->end_parent = 1;
    for (int n = 0; n < 3; n++) {
        int status;
        SYS(wait(&status));
        CHECK_EQ(status, 0, "the end of a child");
    }
    CHECK_EQ(shared->early, 0, "signals that came early");
    CHECK_EQ(shared->deaths, 2, "parent-death signals");
    guest_success();
}
