/* Timed blocking calls, one thread each (or the one named by the argument, in the main
 * thread): each sleeps SLEEP seconds again and again; it may end neither early, nor with
 * EINTR, nor later than by one second plus the pauses of the moves and the time for which the
 * hypervisor has had the CPUs (docs/limits.md). A call that started again with its full time after
 * a move would be late. */
#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>

#define SLEEP_NS (3 * NS_PER_S)
#define SLACK_NS NS_PER_S

static struct timespec span(void)
{
    return (struct timespec){.tv_sec = SLEEP_NS / NS_PER_S};
}

/* Now + the sleep, by CLOCK. */
static struct timespec until(clockid_t clock)
{
    uint64_t at = clock_ns(clock) + SLEEP_NS;
    return (struct timespec){.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)};
}

/* Each returns 0 when the time is up, else errno. */
static int result(long value)
{
    return value == 0 ? 0 : value == -1 ? errno : EPROTO;
}

static int do_nanosleep(void)
{
    struct timespec t = span();
    return result(nanosleep(&t, NULL));
}

static int do_clock_relative(void)
{
    struct timespec t = span();
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

static int do_clock_absolute(void)
{
    struct timespec t = until(CLOCK_MONOTONIC);
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static int do_clock_boottime(void)
{
    struct timespec t = until(CLOCK_BOOTTIME);
    return clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &t, NULL);
}

static int do_poll(void)
{
    return result(poll(NULL, 0, SLEEP_NS / 1000000));
}

static int quiet_pipe(void)
{
    int ends[2];
    SYS(pipe(ends));
    return ends[0];
}

static int do_ppoll(void)
{
    static int fd;
    if (!fd)
        fd = quiet_pipe();
    struct pollfd poll = {.fd = fd, .events = POLLIN};
    struct timespec t = span();
    sigset_t none;
    sigemptyset(&none);
    return result(ppoll(&poll, 1, &t, &none));
}

static int do_select(void)
{
    static int fd;
    if (!fd)
        fd = quiet_pipe();
    fd_set set;
    FD_ZERO(&set);
    FD_SET(fd, &set);
    struct timeval t = {.tv_sec = SLEEP_NS / NS_PER_S};
    return result(select(fd + 1, &set, NULL, NULL, &t));
}

static int do_pselect(void)
{
    struct timespec t = span();
    sigset_t none;
    sigemptyset(&none);
    return result(pselect(0, NULL, NULL, NULL, &t, &none));
}

static int do_epoll_wait(void)
{
    static int epoll;
    if (!epoll) {
        epoll = SYS(epoll_create1(0));
        int fd = quiet_pipe();
        SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN}));
    }
    struct epoll_event event;
    return result(epoll_wait(epoll, &event, 1, SLEEP_NS / 1000000));
}

static int do_epoll_pwait2(void)
{
    static int epoll;
    if (!epoll)
        epoll = SYS(epoll_create1(0));
    struct epoll_event event;
    struct timespec t = span();
    long value = syscall(SYS_epoll_pwait2, epoll, &event, 1, &t, NULL, 8);
    return result(value);
}

static int timed_out(long value)
{
    return value == -1 && errno == ETIMEDOUT ? 0 : value == -1 ? errno : EPROTO;
}

static int do_futex_relative(void)
{
    static uint32_t word;
    struct timespec t = span();
    return timed_out(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0));
}

static int do_futex_bitset(void)
{
    static uint32_t word;
    struct timespec t = until(CLOCK_MONOTONIC);
    return timed_out(syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, 8));
}

static int do_sigtimedwait(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    struct timespec t = span();
    int sig = sigtimedwait(&set, NULL, &t);
    return sig == -1 && errno == EAGAIN ? 0 : sig == -1 ? errno : EPROTO;
}

static int do_sem_timedwait(void)
{
    static sem_t sem;
    struct timespec t = until(CLOCK_REALTIME);
    return timed_out(sem_timedwait(&sem, &t));
}

static int do_cond_timedwait(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    struct timespec t = until(CLOCK_REALTIME);
    pthread_mutex_lock(&lock);
    int got = pthread_cond_timedwait(&cond, &lock, &t);
    pthread_mutex_unlock(&lock);
    return got == ETIMEDOUT ? 0 : got ? got : EPROTO;
}

static const struct call {
    const char *name;
    int (*call)(void);
} calls[] = {
    {"nanosleep", do_nanosleep},
    {"clock_nanosleep-relative", do_clock_relative},
    {"clock_nanosleep-absolute", do_clock_absolute},
    {"clock_nanosleep-boottime", do_clock_boottime},
    {"poll", do_poll},
    {"ppoll", do_ppoll},
    {"select", do_select},
    {"pselect", do_pselect},
    {"epoll_wait", do_epoll_wait},
    {"epoll_pwait2", do_epoll_pwait2},
    {"futex-relative", do_futex_relative},
    {"futex-bitset", do_futex_bitset},
    {"sigtimedwait", do_sigtimedwait},
    {"sem_timedwait", do_sem_timedwait},
    {"pthread_cond_timedwait", do_cond_timedwait},
};

/* The harness writes the pause down only after the move, so a late thread asks again. */
static int late(uint64_t took, uint64_t stolen)
{
    for (int i = 0; i < 200; i++) {
        if (took <= SLEEP_NS + SLACK_NS + stolen + guest_pauses_ns())
            return 0;
        usleep(10000);
    }
    return 1;
}

static void once(const struct call *c)
{
    uint64_t stolen = guest_stolen_ns(), start = clock_ns(CLOCK_MONOTONIC);
    int error = c->call();
    uint64_t took = clock_ns(CLOCK_MONOTONIC) - start;
    stolen = guest_stolen_ns() - stolen;
    CHECK(error == 0, "%s ended with %s after %llu ms", c->name, strerror(error),
          (unsigned long long)took / 1000000);
    /* select and poll round to milliseconds or ticks. */
    CHECK(took + 20000000 >= SLEEP_NS, "%s ended after %llu ms of 3000", c->name,
          (unsigned long long)took / 1000000);
    CHECK(!late(took, stolen), "%s ended after %llu ms of 3000, pauses %llu ms, stolen %llu ms",
          c->name, (unsigned long long)took / 1000000,
          (unsigned long long)guest_pauses_ns() / 1000000, (unsigned long long)stolen / 1000000);
}

static void *sleeper(void *arg)
{
    while (!guest_stopping())
        once(arg);
    return NULL;
}

static void *ticker(void *unused)
{
    while (guest_running())
        ;
    return unused;
}

int main(int argc, char **argv)
{
    guest_begin();
    pthread_t ids[COUNT(calls)], tick;
    const struct call *own = NULL;
    guest_ready();
    CHECK_EQ(pthread_create(&tick, NULL, ticker, NULL), 0, "pthread_create");
    for (size_t i = 0; i < COUNT(calls); i++)
        if (argc > 1 && !strcmp(argv[1], calls[i].name))
            own = &calls[i];
        else if (argc < 2)
            CHECK_EQ(pthread_create(&ids[i], NULL, sleeper, (void *)&calls[i]), 0, "pthread_create");
    CHECK(argc < 2 || own, "no call named %s", argv[1]);
    if (own)
        sleeper((void *)own);
    else
        for (size_t i = 0; i < COUNT(calls); i++)
            pthread_join(ids[i], NULL);
    pthread_join(tick, NULL);
    guest_success();
}
