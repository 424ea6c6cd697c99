/* Real-time signals with values, many at a time: to a thread with a handler, to one in
 * sigwaitinfo(2) and to one that reads a signalfd. None is lost, none comes twice, and they come in
 * the order in which they were sent. */
#include "guest.h"
#include <pthread.h>
#include <sys/signalfd.h>

enum { HANDLED = 34, AWAITED = 35, READ = 36, KINDS = 3, MOST_QUEUED = 24 };

static volatile int taken[KINDS];
static int sent[KINDS];

static void take(int signal, int value)
{
    int *next = (int *)&taken[signal - HANDLED];
    CHECK(value == *next || value == -1, "signal %d: value %d came instead of %d", signal, value, *next);
    __atomic_add_fetch(next, value >= 0, __ATOMIC_RELEASE);
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
    (void)context;
    CHECK_EQ(info->si_code, SI_QUEUE, "si_code");
    take(signal, info->si_value.sival_int);
}

static void *handle(void *unused)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, HANDLED);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    for (;;)
        pause();
    return unused;
}

static void *await(void *unused)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, AWAITED);
    for (;;) {
        siginfo_t info;
        CHECK_EQ(sigwaitinfo(&set, &info), AWAITED, "sigwaitinfo");
        take(AWAITED, info.si_value.sival_int);
    }
    return unused;
}

static void *read_them(void *arg)
{
    int fd = *(int *)arg;
    for (;;) {
        struct signalfd_siginfo some[5];
        ssize_t n = SYS(read(fd, some, sizeof(some)));
        for (size_t i = 0; i < (size_t)n / sizeof(some[0]); i++)
            take((int)some[i].ssi_signo, some[i].ssi_int);
    }
    return NULL;
}

static void send_more(pthread_t handler)
{
    for (int kind = 0; kind < KINDS; kind++)
        while (sent[kind] - __atomic_load_n(&taken[kind], __ATOMIC_ACQUIRE) < MOST_QUEUED) {
            union sigval value = {.sival_int = sent[kind]++};
            if (kind == 0)
                CHECK_EQ(pthread_sigqueue(handler, HANDLED, value), 0, "pthread_sigqueue");
            else
                SYS(sigqueue(getpid(), HANDLED + kind, value));
        }
}

int main(void)
{
    guest_begin();
    sigset_t all;
    sigemptyset(&all);
    for (int kind = 0; kind < KINDS; kind++)
        sigaddset(&all, HANDLED + kind);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    SYS(sigaction(HANDLED, &act, NULL));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, READ);
    int fd = SYS(signalfd(-1, &set, SFD_CLOEXEC));
    pthread_t handler, waiter, reader;
    CHECK_EQ(pthread_create(&handler, NULL, handle, NULL), 0, "pthread_create");
    CHECK_EQ(pthread_create(&waiter, NULL, await, NULL), 0, "pthread_create");
    CHECK_EQ(pthread_create(&reader, NULL, read_them, &fd), 0, "pthread_create");
    guest_ready();
    do
        for (int i = 0; i < 200; i++)
            send_more(handler);
    while (guest_running());
    for (int kind = 0; kind < KINDS; kind++) {
        for (int n = 0; n < 5000 && taken[kind] < sent[kind]; n++)
            usleep(1000);
        CHECK_EQ(taken[kind], sent[kind], "signals that came");
    }
    guest_success();
}
