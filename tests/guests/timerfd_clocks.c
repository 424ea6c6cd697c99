/* Timers of all clocks that timerfd_create(2) takes, absolute ones, and one that is cancelled
 * when the clock is set. */
#include "guest.h"
#include <sys/timerfd.h>

#ifndef TFD_TIMER_CANCEL_ON_SET
#define TFD_TIMER_CANCEL_ON_SET 2
#endif

static const int CLOCKS[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
                             CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM};

/* The settime flags as /proc shows them. */
static unsigned flags_of(int fd)
{
    char path[64], text[1024];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    guest_slurp(path, text, sizeof(text));
    const char *at = strstr(text, "settime flags:");
    CHECK(at, "no settime flags in %s", text);
    return (unsigned)strtoul(at + 14, NULL, 8);
}

int main(void)
{
    guest_begin();
    int far[COUNT(CLOCKS)], fast[COUNT(CLOCKS)], cancelled = SYS(timerfd_create(CLOCK_REALTIME, 0));
    struct itimerspec hour = {.it_value.tv_sec = 3600}, often = {{0, 5000000}, {0, 5000000}}, now;
    for (size_t n = 0; n < COUNT(CLOCKS); n++) {
        far[n] = timerfd_create(CLOCKS[n], TFD_CLOEXEC);
        CHECK(far[n] >= 0 || errno == EPERM, "clock %d: %s", CLOCKS[n], strerror(errno));
        if (far[n] < 0)
            continue;
        fast[n] = SYS(timerfd_create(CLOCKS[n], 0));
        struct timespec at;
        /* The clock of an alarm cannot be read where there is no RTC. */
        int boot = CLOCKS[n] == CLOCK_BOOTTIME || CLOCKS[n] == CLOCK_BOOTTIME_ALARM;
        int wall = CLOCKS[n] == CLOCK_REALTIME || CLOCKS[n] == CLOCK_REALTIME_ALARM;
        SYS(clock_gettime(boot ? CLOCK_BOOTTIME : wall ? CLOCK_REALTIME : CLOCK_MONOTONIC, &at));
        struct itimerspec absolute = {.it_value.tv_sec = at.tv_sec + 3600};
        SYS(timerfd_settime(far[n], TFD_TIMER_ABSTIME, &absolute, NULL));
        SYS(timerfd_settime(fast[n], 0, &often, NULL));
    }
    hour.it_value.tv_sec += time(NULL);
    SYS(timerfd_settime(cancelled, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &hour, NULL));
    unsigned flags = flags_of(cancelled);
    guest_ready();
    do {
        for (size_t n = 0; n < COUNT(CLOCKS); n++) {
            uint64_t ticks = 0;
            if (far[n] < 0)
                continue;
            SYS(timerfd_gettime(far[n], &now));
            CHECK(now.it_value.tv_sec > 3000 && now.it_value.tv_sec <= 3600,
                  "clock %d: %lld s are left", CLOCKS[n], (long long)now.it_value.tv_sec);
            CHECK_EQ(SYS(read(fast[n], &ticks, 8)), 8, "read");
            CHECK(ticks > 0, "no tick");
        }
        SYS(timerfd_gettime(cancelled, &now));
        CHECK(now.it_value.tv_sec > 3000, "the timer that a new time cancels is off");
        CHECK_EQ(flags_of(cancelled), flags, "settime flags");
    } while (guest_running());
    guest_success();
}
