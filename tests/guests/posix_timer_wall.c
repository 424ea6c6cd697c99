/* POSIX timers that are set to an absolute time of day are due at that very time after a move, and
 * those that were set to a relative one later are not taken for them. */
#include "guest.h"

static const clockid_t CLOCKS[] = {CLOCK_REALTIME, CLOCK_TAI, CLOCK_REALTIME_ALARM};
enum { KINDS = 3 };

struct timer {
    clockid_t clock;
    int id, made, absolute;
    uint64_t due, interval;
};

static struct timer timers[COUNT(CLOCKS)][KINDS];
/* Vosrun has started this program, and sees what it asks for. */
static int seen;

static struct timespec spec(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

static void set(struct timer *t, uint64_t in, int absolute)
{
    uint64_t now = clock_ns(t->clock);
    t->absolute = absolute;
    t->due = now + in;
    struct itimerspec value = {spec(t->interval), spec(absolute ? t->due : in)};
    SYS(syscall(SYS_timer_settime, t->id, absolute ? TIMER_ABSTIME : 0, &value, NULL));
}

/* Kind: 0: once, 1: periodic, 2: was absolute before. */
static void create(struct timer *t, clockid_t clock, int kind)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    t->clock = clock;
    if (syscall(SYS_timer_create, clock, &event, &t->id) != 0) {
        CHECK(clock == CLOCK_REALTIME_ALARM, "timer_create: %s", strerror(errno));
        return;
    }
    t->made = 1;
    t->interval = kind ? 700 * NS_PER_S : 0;
    set(t, 1000 * NS_PER_S + 12345, 1);
    if (kind == 2)
        set(t, 1200 * NS_PER_S, 0);
}

static void check(const struct timer *t)
{
    struct itimerspec value;
    uint64_t before = clock_ns(t->clock);
    SYS(syscall(SYS_timer_gettime, t->id, &value));
    uint64_t after = clock_ns(t->clock);
    uint64_t left = (uint64_t)value.it_value.tv_sec * NS_PER_S + (uint64_t)value.it_value.tv_nsec;
    uint64_t off = t->absolute && seen ? 100 : 100000000;
    CHECK(before + left <= t->due + off && after + left + off >= t->due,
          "clock %d, absolute %d: due %lld to %lld ns late", t->clock, t->absolute,
          (long long)(before + left - t->due), (long long)(after + left - t->due));
}

int main(void)
{
    guest_begin();
    char tracer[32];
    guest_proc_status("TracerPid", tracer, sizeof(tracer));
    seen = strcmp(tracer, "0") != 0;
    for (size_t n = 0; n < COUNT(CLOCKS); n++)
        for (int kind = 0; kind < KINDS; kind++)
            create(&timers[n][kind], CLOCKS[n], kind);
    guest_ready();
    do
        for (size_t n = 0; n < COUNT(CLOCKS); n++)
            for (int kind = 0; kind < KINDS; kind++)
                if (timers[n][kind].made)
                    check(&timers[n][kind]);
    while (guest_running());
    guest_success();
}
