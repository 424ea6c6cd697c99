/* POSIX timers of every clock, relative and absolute, once and periodic: they expire when they
 * would without a move, and never before. */
#include "guest.h"

static const clockid_t CLOCKS[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI,
                                   CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM};
enum { KINDS = 4, PERIOD_MS = 7000, FIRST_S = 100 };

struct timer {
    clockid_t clock;
    int id, made;
    uint64_t due, interval;
};

static struct timer timers[COUNT(CLOCKS)][KINDS];

static struct timespec spec(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

static uint64_t ns(struct timespec t)
{
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Kind: 1: absolute, 2: periodic. */
static void create(struct timer *t, clockid_t clock, int kind)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    t->clock = clock;
    if (syscall(SYS_timer_create, clock, &event, &t->id) != 0) {
        CHECK(clock >= CLOCK_REALTIME_ALARM && clock != CLOCK_TAI, "timer_create: %s", strerror(errno));
        return;
    }
    t->made = 1;
    t->interval = kind & 2 ? PERIOD_MS * 1000000ULL : 0;
    uint64_t first = (FIRST_S + (uint64_t)kind) * NS_PER_S, now = clock_ns(clock);
    struct itimerspec value = {spec(t->interval), spec(kind & 1 ? now + first : first)};
    SYS(syscall(SYS_timer_settime, t->id, kind & 1 ? TIMER_ABSTIME : 0, &value, NULL));
    t->due = now + first;
}

static void check(const struct timer *t, int kind)
{
    struct itimerspec value;
    uint64_t before = clock_ns(t->clock);
    SYS(syscall(SYS_timer_gettime, t->id, &value));
    uint64_t after = clock_ns(t->clock);
    CHECK_EQ(ns(value.it_interval), t->interval, "interval");
    uint64_t due = ns(value.it_value);
    /* Set relative on another clock than the machine's own, it may become later by a little with
     * each move. */
    CHECK(before + due <= t->due + 100000000ULL && after + due + 1000 >= t->due,
          "clock %d kind %d: due in %lld us, should be %lld us", t->clock, kind,
          (long long)due / 1000, (long long)(t->due - after) / 1000);
}

static void each(void (*todo)(struct timer *, clockid_t, int))
{
    for (size_t i = 0; i < COUNT(CLOCKS); i++)
        for (int kind = 0; kind < KINDS; kind++)
            todo(&timers[i][kind], CLOCKS[i], kind);
}

static void check_made(struct timer *t, clockid_t clock, int kind)
{
    (void)clock;
    if (t->made)
        check(t, kind);
}

int main(void)
{
    guest_begin();
    each(create);
    guest_ready();
    do
        each(check_made);
    while (guest_running());
    guest_success();
}
