/* Stops and continuations of children: what the parent has been told stays told, a stop that it has
 * not asked for yet waits for it, and nobody gets a SIGCHLD for the same again. One that is stopped
 * has a stopped child itself. */
#include "guest.h"
#include <sys/wait.h>

enum {
    TOLD_STOP,
    NEW_STOP,
    NESTED,
    CONTINUED,
    NEWLY_CONTINUED,
    CONT_BLOCKED,
    STOPS_BLOCKED,
    KINDS
};

static volatile int chlds;

static void on_chld(int sig)
{
    (void)sig;
    chlds++;
}

/* How often children have handled SIGCONT. */
static volatile int *conts;

static void on_cont(int sig)
{
    (void)sig;
    ++*conts;
}

static pid_t start(int kind)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCONT);
    if (kind == STOPS_BLOCKED) {
        sigemptyset(&set);
        sigaddset(&set, SIGTSTP);
        sigaddset(&set, SIGTTIN);
    }
    if (kind == CONT_BLOCKED || kind == STOPS_BLOCKED)
        SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    pid_t pid = SYS(fork());
    while (pid == 0)
        pause();
    SYS(sigprocmask(SIG_UNBLOCK, &set, NULL));
    return pid;
}

/* Signals of one number merge: each is waited for before the next. */
static void await_chld(void)
{
    static int expected;
    for (expected++; chlds < expected;)
        usleep(100);
}

/* What is to be told of a child; 0: nothing. It may be asked again. */
static int news(pid_t pid, int options, int *status)
{
    siginfo_t info = {0};
    SYS(waitid(P_PID, (id_t)pid, &info, options | WNOHANG | WNOWAIT));
    *status = info.si_status;
    return info.si_pid ? info.si_code : 0;
}

static void take(pid_t pid, int options)
{
    siginfo_t info;
    SYS(waitid(P_PID, (id_t)pid, &info, options));
}

/* Knows of its child's stop when it goes on after its own. */
__attribute__((noreturn)) static void stop_with_child(void)
{
    int status;
    pid_t below = start(NESTED);
    SYS(kill(below, SIGSTOP));
    take(below, WSTOPPED);
    while (chlds < 1)
        usleep(100);
    raise(SIGSTOP);
    CHECK_EQ(news(below, WSTOPPED, &status), 0, "a stop below");
    CHECK_EQ(chlds, 1, "SIGCHLD below");
    SYS(kill(below, SIGKILL));
    SYS(waitpid(below, &status, 0));
    _exit(status == SIGKILL ? 7 : 1);
}

/* One of them was sent to the process, the other to its thread. */
static void check_waiting(pid_t pid)
{
    char path[64], text[8192];
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    guest_slurp(path, text, sizeof(text));
    const char *own = strstr(text, "SigPnd:"), *shared = strstr(text, "ShdPnd:");
    CHECK(own && shared, "no signals in %s", path);
    CHECK_EQ(strtoull(own + 7, NULL, 16), 1ULL << (SIGTTIN - 1), "SIGTTIN waits");
    CHECK_EQ(strtoull(shared + 7, NULL, 16), 1ULL << (SIGTSTP - 1), "SIGTSTP waits");
}

static void check(const pid_t *pids)
{
    static const int STOPS[KINDS] = {0, CLD_STOPPED};
    for (int n = 0; n < KINDS; n++) {
        int status;
        CHECK(news(pids[n], WSTOPPED, &status) == STOPS[n], "child %d: stop %d", n, status);
        CHECK(!STOPS[n] || status == SIGTSTP, "child %d: stopped by %d", n, status);
        int goes_on = n >= NEWLY_CONTINUED;
        CHECK_EQ(news(pids[n], WCONTINUED, &status), goes_on ? CLD_CONTINUED : 0, "a continuation");
        CHECK(!goes_on || status == SIGCONT, "child %d: continued by %d", n, status);
        CHECK_EQ(news(pids[n], WEXITED, &status), 0, "an end");
    }
    check_waiting(pids[STOPS_BLOCKED]);
}

int main(void)
{
    guest_begin();
    conts = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(conts != MAP_FAILED, "mmap: %s", strerror(errno));
    pid_t pids[KINDS];
    signal(SIGCONT, on_cont);
    struct sigaction act = {.sa_handler = on_chld, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGCHLD, &act, NULL));
    for (int n = 0; n < KINDS; n++) {
        if (n == NESTED && (pids[n] = SYS(fork())) == 0) {
            chlds = 0;
            stop_with_child();
        } else if (n != NESTED) {
            pids[n] = start(n);
        }
        int signal = n == NEW_STOP ? SIGTSTP : SIGSTOP;
        /* SIGTSTP does not stop an orphaned group (setpgid(2)): this one has its parent. */
        SYS(setpgid(pids[n], pids[n]));
        if (n != NESTED)
            SYS(kill(pids[n], signal));
        siginfo_t info;
        SYS(waitid(P_PID, (id_t)pids[n], &info, WSTOPPED | WNOWAIT));
        await_chld();
        if (n != NEW_STOP)
            take(pids[n], WSTOPPED);
        if (n >= CONTINUED) {
            SYS(kill(pids[n], SIGCONT));
            await_chld();
        }
        if (n == CONTINUED)
            take(pids[n], WCONTINUED);
        if (n == STOPS_BLOCKED) {
            /* They would take SIGCONT away. */
            while (*conts < 3)
                usleep(100);
            SYS(kill(pids[n], SIGTSTP));
            SYS(syscall(SYS_tgkill, pids[n], pids[n], SIGTTIN));
        }
    }
    guest_ready();
    do {
        check(pids);
        /* One for each stop and each continuation. */
        CHECK_EQ(chlds, KINDS + (KINDS - CONTINUED), "SIGCHLD");
        CHECK_EQ(*conts, 3, "SIGCONT handled");
    } while (guest_running());
    for (int n = 0; n < KINDS; n++) {
        int status;
        SYS(kill(pids[n], n == NESTED ? SIGCONT : SIGKILL));
        SYS(waitpid(pids[n], &status, 0));
        CHECK_EQ(status, n == NESTED ? 7 << 8 : SIGKILL, "status of a child");
    }
    guest_success();
}
