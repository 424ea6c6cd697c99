/* Blocked signals that wait, to the process and to a thread: which, how often, in which
 * order, and with what siginfo. They are looked at before (sigpending) and taken at the end. */
#include "guest.h"
#include <pthread.h>

struct entry {
    int sig, code, value;
    pid_t pid;
};

static sigset_t all;
static pthread_barrier_t sent, finish;

static void queue(int sig, int value)
{
    SYS(sigqueue(getpid(), sig, (union sigval){.sival_int = value}));
}

static void queue_thread(int sig, int value)
{
    siginfo_t info = {.si_signo = sig, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    SYS(syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), sig, &info));
}

static void take(const struct entry *want, size_t count, const char *who)
{
    const struct timespec none = {0};
    for (size_t i = 0; i < count; i++) {
        siginfo_t info;
        /* Not sigtimedwait: glibc turns SI_TKILL into SI_USER there. */
        int sig = (int)syscall(SYS_rt_sigtimedwait, &all, &info, &none, 8);
        CHECK(sig == want[i].sig, "%s: signal %zu: expected %d, got %d", who, i, want[i].sig, sig);
        CHECK_EQ(info.si_code, want[i].code, "si_code of a pending signal");
        CHECK_EQ(info.si_pid, getpid(), "si_pid of a pending signal");
        CHECK_EQ(info.si_uid, getuid(), "si_uid of a pending signal");
        if (want[i].code == SI_QUEUE)
            CHECK_EQ(info.si_value.sival_int, want[i].value, "si_value of a pending signal");
    }
}

static const struct entry thread_wants[] = {
    {SIGTRAP, SI_QUEUE, 70, 0}, {SIGUSR2, SI_TKILL, 0, 0},  {36, SI_QUEUE, 71, 0},
    {36, SI_QUEUE, 72, 0},      {40, SI_QUEUE, 73, 0},
};
static const struct entry process_wants[] = {
    {SIGTRAP, SI_QUEUE, 10, 0},   /* the kernel gives it before the others */
    {SIGHUP, SI_USER, 0, 0},      {SIGUSR1, SI_QUEUE, 11, 0}, {SIGTERM, SI_USER, 0, 0},
    {SIGCHLD, SI_USER, 0, 0},     {35, SI_QUEUE, 21, 0},      {35, SI_QUEUE, 22, 0},
    {35, SI_QUEUE, 23, 0},        {50, SI_QUEUE, 24, 0},      {64, SI_QUEUE, 25, 0},
};

static void check_pending(const struct entry *want, size_t count)
{
    sigset_t pending;
    sigpending(&pending);
    for (size_t i = 0; i < count; i++)
        CHECK(sigismember(&pending, want[i].sig), "signal %d is no longer pending", want[i].sig);
    CHECK(!sigismember(&pending, SIGALRM), "a signal that nobody sent is pending");
}

static void *thread(void *unused)
{
    queue_thread(36, 71);
    queue_thread(SIGTRAP, 70);
    queue_thread(36, 72);
    queue_thread(40, 73);
    pthread_kill(pthread_self(), SIGUSR2);
    pthread_barrier_wait(&sent);
    pthread_barrier_wait(&finish);
    check_pending(thread_wants, COUNT(thread_wants));
    take(thread_wants, COUNT(thread_wants), "of the thread");
    return unused;
}

int main(void)
{
    guest_begin();
    sigfillset(&all);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, &all, NULL), 0, "pthread_sigmask");
    /* An ignored SIGCHLD would be thrown away even when blocked. */
    pthread_barrier_init(&sent, NULL, 2);
    pthread_barrier_init(&finish, NULL, 2);
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, thread, NULL), 0, "pthread_create");
    pthread_barrier_wait(&sent);
    queue(64, 25);
    queue(SIGTRAP, 10);
    queue(35, 21);
    SYS(kill(getpid(), SIGTERM));
    queue(35, 22);
    queue(SIGUSR1, 11);
    queue(35, 23);
    queue(50, 24);
    SYS(kill(getpid(), SIGHUP));
    SYS(kill(getpid(), SIGHUP)); /* the second is merged with the first */
    signal(SIGCHLD, SIG_DFL);
    struct sigaction act = {.sa_handler = (void (*)(int))abort};
    SYS(sigaction(SIGCHLD, &act, NULL));
    SYS(kill(getpid(), SIGCHLD));
    guest_ready();
    do
        check_pending(process_wants, COUNT(process_wants));
    while (guest_running());
    /* The thread takes its own first, so that none of the process's can go to it. */
    take(process_wants, COUNT(process_wants), "of the process");
    pthread_barrier_wait(&finish);
    pthread_join(id, NULL);
    const struct timespec none = {0};
    CHECK(sigtimedwait(&all, NULL, &none) == -1 && errno == EAGAIN, "a signal came twice");
    guest_success();
}
