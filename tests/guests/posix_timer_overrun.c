/* Periodic POSIX timers whose signals are blocked: a signal and its overruns count every period
 * once, whatever time has gone by, and so does the one whose turn it was at a move. */
#include "guest.h"

enum { TIMERS = 3 };

static const clockid_t CLOCKS[TIMERS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC};
static const uint64_t PERIODS[TIMERS] = {1000000, 3000000, 20000000};
static const int SIGNALS[TIMERS] = {SIGUSR1, 40, 41};
static uint64_t first[TIMERS], taken[TIMERS];
static int ids[TIMERS];

static void start(int n)
{
    struct sigevent event = {.sigev_notify = n == 2 ? SIGEV_THREAD_ID : SIGEV_SIGNAL,
                             .sigev_signo = SIGNALS[n]};
    if (n == 2)
        event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    SYS(syscall(SYS_timer_create, CLOCKS[n], &event, &ids[n]));
    first[n] = clock_ns(CLOCKS[n]) + PERIODS[n];
    struct itimerspec value = {
        .it_interval = {.tv_nsec = (long)PERIODS[n]},
        .it_value = {(time_t)(first[n] / NS_PER_S), (long)(first[n] % NS_PER_S)}};
    SYS(syscall(SYS_timer_settime, ids[n], TIMER_ABSTIME, &value, NULL));
}

/* A timer and its clock cannot be asked at once: what moves may part them, ns. */
static const int64_t APART = 200000;

static uint64_t periods(int n, int64_t apart)
{
    uint64_t now = clock_ns(CLOCKS[n]) + (uint64_t)apart;
    return now < first[n] ? 0 : (now - first[n]) / PERIODS[n] + 1;
}

/* Takes the signal, if it is there, and counts the periods that it stands for. */
static void take(int n)
{
    sigset_t set;
    siginfo_t info;
    sigemptyset(&set);
    sigaddset(&set, SIGNALS[n]);
    uint64_t before = periods(n, -APART);
    int got;
    while ((got = sigtimedwait(&set, &info, &(struct timespec){0})) == -1 && errno == EINTR)
        ;
    uint64_t after = periods(n, APART);
    if (got == -1) {
        CHECK(taken[n] >= before, "timer %d: no signal, %llu of %llu periods taken", n,
              (unsigned long long)taken[n], (unsigned long long)before);
        return;
    }
    CHECK_EQ(info.si_code, SI_TIMER, "si_code");
    CHECK_EQ(info.si_timerid, ids[n], "the timer");
    int overrun = (int)SYS(syscall(SYS_timer_getoverrun, ids[n]));
    /* After a move it tells 0 until the next signal. */
    CHECK(overrun == info.si_overrun || overrun == 0, "timer_getoverrun: %d instead of %d", overrun,
          info.si_overrun);
    taken[n] += 1 + (uint64_t)info.si_overrun;
    CHECK(taken[n] >= before && taken[n] <= after, "timer %d: %llu periods taken, %llu to %llu passed", n,
          (unsigned long long)taken[n], (unsigned long long)before, (unsigned long long)after);
}

int main(void)
{
    guest_begin();
    sigset_t all;
    sigfillset(&all);
    SYS(sigprocmask(SIG_BLOCK, &all, NULL));
    for (int n = 0; n < TIMERS; n++)
        start(n);
    guest_ready();
    for (unsigned turn = 0; guest_running(); turn++)
        for (int n = 0; n < TIMERS; n++)
            if (guest_mix(turn * 3 + (unsigned)n) % 5 == 0)
                take(n);
    for (int n = 0; n < TIMERS; n++)
        take(n);
    guest_success();
}
