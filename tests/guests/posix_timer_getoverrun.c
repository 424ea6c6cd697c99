/* timer_getoverrun(2) tells the overruns of a timer's last signal until the next one comes, also
 * of timers that share their signal with another, and of one that tells a thread. */
#include "guest.h"
#include <pthread.h>

enum { OVERRUNS = 3, SHARED = 40, FAST_MS = 20 };

/* Its next expiry is far away; the last one stood for OVERRUNS more. */
struct slow {
    clockid_t clock;
    int signal, thread, id;
    uint64_t interval, due;
};

static struct slow slow[] = {
    {.clock = CLOCK_MONOTONIC, .signal = SHARED},
    {.clock = CLOCK_BOOTTIME, .signal = SIGALRM},
    {.clock = CLOCK_REALTIME, .signal = SHARED},
    {.clock = CLOCK_MONOTONIC, .signal = SHARED + 1, .thread = 1},
};
static int fast_id;
static uint64_t fast_first, fast_taken;

static struct timespec spec(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

static int take(int signal, siginfo_t *info, time_t patience)
{
    sigset_t set;
    int got;
    sigemptyset(&set);
    sigaddset(&set, signal);
    while ((got = sigtimedwait(&set, info, &(struct timespec){patience, 0})) == -1 && errno == EINTR)
        ;
    return got;
}

static void set(struct slow *t)
{
    uint64_t now = clock_ns(t->clock);
    t->interval = t->clock == CLOCK_REALTIME ? 1000 * NS_PER_S : now / 5;
    uint64_t begin = now - (2 * OVERRUNS + 1) * t->interval / 2;
    t->due = begin + (OVERRUNS + 1) * t->interval;
    struct itimerspec value = {spec(t->interval), spec(begin)};
    SYS(syscall(SYS_timer_settime, t->id, TIMER_ABSTIME, &value, NULL));
    siginfo_t info;
    do
        CHECK_EQ(take(t->signal, &info, 30), t->signal, "the first signal");
    while (info.si_timerid != t->id);
    CHECK_EQ(info.si_overrun, OVERRUNS, "si_overrun");
}

static void make(struct slow *t)
{
    struct sigevent event = {.sigev_notify = t->thread ? SIGEV_THREAD_ID : SIGEV_SIGNAL,
                             .sigev_signo = t->signal};
    if (t->thread)
        event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    SYS(syscall(SYS_timer_create, t->clock, &event, &t->id));
    set(t);
}

static void check(struct slow *t)
{
    uint64_t before = clock_ns(t->clock);
    if (before + 5 * NS_PER_S > t->due) {
        set(t);
        return;
    }
    CHECK_EQ(SYS(syscall(SYS_timer_getoverrun, t->id)), OVERRUNS, "timer_getoverrun");
    struct itimerspec value;
    SYS(syscall(SYS_timer_gettime, t->id, &value));
    uint64_t left = (uint64_t)value.it_value.tv_sec * NS_PER_S + (uint64_t)value.it_value.tv_nsec;
    uint64_t after = clock_ns(t->clock);
    CHECK(before + left <= t->due + 100000000 && after + left + 100000000 >= t->due,
          "timer %d is due %lld us late", t->id, (long long)(before + left - t->due) / 1000);
    siginfo_t info;
    if (t->signal != SHARED)
        CHECK_EQ(take(t->signal, &info, 0), -1, "a signal that nobody has sent");
}

static void start_fast(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SHARED};
    SYS(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &fast_id));
    fast_first = clock_ns(CLOCK_MONOTONIC) + NS_PER_S;
    struct itimerspec value = {spec(FAST_MS * 1000000), spec(fast_first)};
    SYS(syscall(SYS_timer_settime, fast_id, TIMER_ABSTIME, &value, NULL));
}

static uint64_t fast_periods(uint64_t now)
{
    return now < fast_first ? 0 : (now - fast_first) / (FAST_MS * 1000000) + 1;
}

/* The signals of the fast timer stand for all its periods. */
static void take_fast(void)
{
    siginfo_t info;
    uint64_t before = fast_periods(clock_ns(CLOCK_MONOTONIC) - 200000);
    while (take(SHARED, &info, 0) == SHARED) {
        CHECK_EQ(info.si_timerid, fast_id, "the timer of the signal");
        fast_taken += 1 + (uint64_t)info.si_overrun;
    }
    uint64_t after = fast_periods(clock_ns(CLOCK_MONOTONIC) + 200000);
    CHECK(fast_taken >= before && fast_taken <= after, "%llu periods taken, %llu to %llu passed",
          (unsigned long long)fast_taken, (unsigned long long)before, (unsigned long long)after);
}

static volatile int made, over;

static void *of_thread(void *unused)
{
    (void)unused;
    struct slow *t = &slow[COUNT(slow) - 1];
    make(t);
    made = 1;
    while (!over) {
        check(t);
        usleep(2000);
    }
    return NULL;
}

int main(void)
{
    guest_begin();
    sigset_t all;
    sigfillset(&all);
    SYS(sigprocmask(SIG_BLOCK, &all, NULL));
    for (size_t n = 0; n + 1 < COUNT(slow); n++)
        make(&slow[n]);
    start_fast();
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, of_thread, NULL), 0, "pthread_create");
    while (!made)
        usleep(1000);
    guest_ready();
    unsigned turn = 0;
    do {
        for (size_t n = 0; n + 1 < COUNT(slow); n++)
            check(&slow[n]);
        if (++turn % 20 == 0)
            take_fast();
    } while (guest_running());
    take_fast();
    over = 1;
    pthread_join(thread, NULL);
    guest_success();
}
