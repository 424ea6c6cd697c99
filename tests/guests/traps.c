/* SIGTRAP as the program's own signal. `ignored`: it stays so. Else it is caught, and every
 * turn sends one in each way there is (from another thread, from the thread itself; to the
 * process, to the thread, with a value): each arrives once, and says who sent it how. With
 * `undumpable` the process is not dumpable besides. */
#include "guest.h"
#include <pthread.h>
#include <sys/prctl.h>

enum way { KILL, TGKILL, QUEUE, QUEUE_THREAD, WAYS };

static pthread_barrier_t go, sent;
static volatile sig_atomic_t arrived, code, sender, value, taker;
static int turn;
static pid_t main_tid;

static void on_trap(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    code = info->si_code;
    sender = info->si_pid;
    value = info->si_value.sival_int;
    taker = (sig_atomic_t)syscall(SYS_gettid);
    arrived++;
}

static void send_trap(enum way way)
{
    siginfo_t info = {.si_signo = SIGTRAP, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = turn;
    switch (way) {
    case KILL:
        SYS(kill(getpid(), SIGTRAP));
        break;
    case TGKILL:
        SYS(syscall(SYS_tgkill, getpid(), main_tid, SIGTRAP));
        break;
    case QUEUE:
        SYS(sigqueue(getpid(), SIGTRAP, info.si_value));
        break;
    default:
        SYS(syscall(SYS_rt_tgsigqueueinfo, getpid(), main_tid, SIGTRAP, &info));
    }
}

static void await_trap(enum way way)
{
    static const int codes[WAYS] = {SI_USER, SI_TKILL, SI_QUEUE, SI_QUEUE};
    uint64_t begin = clock_ns(CLOCK_MONOTONIC);
    while (!arrived)
        CHECK(clock_ns(CLOCK_MONOTONIC) - begin < 20 * NS_PER_S, "SIGTRAP of way %d is lost", way);
    CHECK_EQ(arrived, 1, "SIGTRAPs that arrived");
    CHECK_EQ(code, codes[way], "si_code of SIGTRAP");
    CHECK_EQ(sender, getpid(), "si_pid of SIGTRAP");
    if (codes[way] == SI_QUEUE)
        CHECK_EQ(value, turn, "si_value of SIGTRAP");
    if (way == TGKILL || way == QUEUE_THREAD)
        CHECK_EQ(taker, main_tid, "thread that took SIGTRAP");
    arrived = 0;
}

static void *other(void *unused)
{
    for (;;) {
        pthread_barrier_wait(&go);
        send_trap(turn % WAYS);
        pthread_barrier_wait(&sent);
    }
    return unused;
}

static void catch(void)
{
    struct sigaction act = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_RESTART};
    pthread_t id;
    SYS(sigaction(SIGTRAP, &act, NULL));
    pthread_barrier_init(&go, NULL, 2);
    pthread_barrier_init(&sent, NULL, 2);
    CHECK_EQ(pthread_create(&id, NULL, other, NULL), 0, "pthread_create");
}

static void exchange(void)
{
    for (int i = 0; i < 200; i++, turn++) {
        pthread_barrier_wait(&go);
        await_trap(turn % WAYS);
        pthread_barrier_wait(&sent);
        send_trap(turn % WAYS);
        await_trap(turn % WAYS);
    }
}

static void check_ignored(void)
{
    struct sigaction now;
    SYS(sigaction(SIGTRAP, NULL, &now));
    CHECK(now.sa_handler == SIG_IGN, "SIGTRAP is no longer ignored");
    for (enum way way = KILL; way < WAYS; way++)
        send_trap(way);
}

int main(int argc, char **argv)
{
    int ignored = argc > 1 && !strcmp(argv[1], "ignored");
    guest_begin();
    main_tid = getpid();
    if (argc > 1 && !strcmp(argv[1], "undumpable"))
        SYS(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    if (ignored)
        CHECK(signal(SIGTRAP, SIG_IGN) != SIG_ERR, "signal");
    else
        catch();
    guest_ready();
    do
        if (ignored)
            check_ignored();
        else
            exchange();
    while (guest_running());
    guest_success();
}
