/* A tree of idle processes of several kinds: sleeping, waiting, stopped, dead, with threads, with
 * timers, in a session of its own. With the argument `socket` one holds a TCP socket. One of them
 * does what the harness wants when `$GUEST_STATUS.WANTED` appears, and says so by
 * `$GUEST_STATUS.did`: `socket` opens one, `fork` makes a child, `fork-socket` one that has a socket,
 * `exec` executes another program, `share` makes a child that shares the memory, `filter` puts a seccomp
 * filter on itself, `unshare` enters a namespace of its own. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>

static const char *const WANTED[] = {"socket", "fork", "fork-socket", "exec", "share", "filter", "unshare"};
static int orders[2];
static char did[256];

/* In the way that no move gives up: a timeout that never comes, or none. */
__attribute__((noreturn)) static void idle(void)
{
    for (;;)
        pause();
}

static int idle_clone(void *unused)
{
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    idle();
}

static void *in_poll(void *unused)
{
    for (;;)
        poll(NULL, 0, 100000000);
    return unused;
}

static void *in_epoll(void *unused)
{
    struct epoll_event event;
    int epoll = SYS(epoll_create1(0));
    for (;;)
        epoll_wait(epoll, &event, 1, -1);
    return unused;
}

static void open_socket(void) { SYS(socket(AF_INET, SOCK_STREAM, 0)); }

static void with_signals(void)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGRTMIN);
    SYS(sigprocmask(SIG_BLOCK, &blocked, NULL));
    signal(SIGTRAP, SIG_IGN);
    SYS(kill(getpid(), SIGUSR1));
    SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 1}));
    idle();
}

static void sleeping(void)
{
    for (;;)
        nanosleep(&(struct timespec){.tv_sec = 100000}, NULL);
}

static void stopped(void)
{
    for (;;)
        raise(SIGSTOP);
}

static void dead(void) { _exit(3); }

static void with_threads(void)
{
    pthread_t one, other;
    CHECK(!pthread_create(&one, NULL, in_poll, NULL), "thread");
    CHECK(!pthread_create(&other, NULL, in_epoll, NULL), "thread");
    pthread_join(one, NULL);
}

static void with_timers(void)
{
    SYS(setsid());
    SYS(setitimer(ITIMER_REAL, &(struct itimerval){.it_value.tv_sec = 100000}, NULL));
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
    idle();
}

static void waiting_for_a_child(void)
{
    if (SYS(fork()) == 0) {
        SYS(prctl(PR_SET_PDEATHSIG, SIGKILL));
        SYS(setpgid(0, 0));
        SYS(mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
        idle();
    }
    waitpid(-1, NULL, 0);
}

static void filter_itself(void)
{
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {1, &allow};
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void obey(char wanted)
{
    static char stack[16384] __attribute__((aligned(16)));
    switch (wanted) {
    case 2:
        open_socket();
        /* fall through */
    case 1:
        if (SYS(fork()) == 0) {
            SYS(prctl(PR_SET_PDEATHSIG, SIGKILL));
            idle();
        }
        break;
    case 3:
        SYS(execl("/proc/self/exe", "idle_tree", "executed", did, (char *)NULL));
        break;
    case 4:
        SYS(clone(idle_clone, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));
        break;
    case 5:
        filter_itself();
        break;
    case 6:
        SYS(unshare(geteuid() ? CLONE_NEWUSER : CLONE_NEWUTS));
        break;
    default:
        open_socket();
    }
}

static void say_done(void) { SYS(close(SYS(open(did, O_WRONLY | O_CREAT, 0644)))); }

static void obeying(void)
{
    char wanted;
    while (SYS(read(orders[0], &wanted, 1)) == 1) {
        obey(wanted);
        say_done();
    }
    idle();
}

static void holding_a_socket(void)
{
    open_socket();
    idle();
}

static pid_t start(void (*run)(void))
{
    pid_t pid = SYS(fork());
    if (pid == 0) {
        SYS(prctl(PR_SET_PDEATHSIG, SIGKILL));
        run();
        _exit(0);
    }
    return pid;
}

static void give_order(void)
{
    static char given[COUNT(WANTED)];
    char path[256];
    for (char n = 0; n < (char)COUNT(WANTED); n++)
        if (!given[(int)n] && access(guest_path(path, sizeof(path), WANTED[(int)n]), F_OK) == 0) {
            given[(int)n] = 1;
            CHECK_EQ(write(orders[1], &n, 1), 1, "order");
        }
}

int main(int argc, char **argv)
{
    if (argc > 2 && !strcmp(argv[1], "executed")) {
        snprintf(did, sizeof(did), "%s", argv[2]);
        say_done();
        idle();
    }
    guest_begin();
    guest_path(did, sizeof(did), "did");
    SYS(pipe(orders));
    int socket_too = argc > 1 && !strcmp(argv[1], "socket");
    void (*const kinds[])(void) = {with_signals, sleeping, stopped, dead, with_threads,
                                   with_timers, waiting_for_a_child, obeying, holding_a_socket};
    pid_t children[COUNT(kinds)] = {0};
    for (size_t i = 0; i < COUNT(kinds) - !socket_too; i++)
        children[i] = start(kinds[i]);
    siginfo_t info;
    SYS(waitid(P_PID, (id_t)children[2], &info, WSTOPPED | WNOWAIT));
    SYS(waitid(P_PID, (id_t)children[3], &info, WEXITED | WNOWAIT));
    guest_ready();
    do
        give_order();
    while (guest_running());
    for (size_t i = 0; i < COUNT(kinds) - !socket_too; i++) {
        int status;
        kill(children[i], SIGKILL);
        CHECK_EQ(SYS(waitpid(children[i], &status, 0)), children[i], "waitpid");
        CHECK_EQ(status, i == 3 ? 3 << 8 : SIGKILL, "status of a child");
    }
    guest_success();
}
