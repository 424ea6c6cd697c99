/* Periodic timerfds on all clocks: by their own clock no tick comes early, however often the job
 * moves, and none is left out. */
#include "guest.h"
#include <poll.h>
#include <sys/timerfd.h>

enum { TIMERS = 4 };

/* Two clocks cannot be read at once: what a move may part them. */
static const uint64_t APART = 50000;

static const clockid_t CLOCKS[TIMERS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME,
                                         CLOCK_REALTIME};
static const uint64_t PERIODS[TIMERS] = {7000000, 20000000, 20000000, 130000000};
/* What the supervisor needs from one look at a clock to the next is late, not early. */
static const uint64_t LATE = 2 * NS_PER_S;

int main(void)
{
    guest_begin();
    struct pollfd fds[TIMERS];
    uint64_t first[TIMERS], taken[TIMERS] = {0};
    for (int n = 0; n < TIMERS; n++) {
        fds[n] = (struct pollfd){.fd = SYS(timerfd_create(CLOCKS[n], TFD_NONBLOCK)), .events = POLLIN};
        struct timespec period = {.tv_nsec = (long)PERIODS[n]};
        struct itimerspec value = {.it_interval = period, .it_value = period};
        /* It cannot come before this. */
        first[n] = clock_ns(CLOCKS[n]) + PERIODS[n];
        SYS(timerfd_settime(fds[n].fd, 0, &value, NULL));
    }
    guest_ready();
    do {
        CHECK(poll(fds, TIMERS, 20000) > 0, "no tick: %s", strerror(errno));
        for (int n = 0; n < TIMERS; n++) {
            uint64_t ticks, now, passed;
            uint64_t before = clock_ns(CLOCKS[n]);
            if (read(fds[n].fd, &ticks, sizeof(ticks)) != sizeof(ticks)) {
                CHECK_EQ(errno, EAGAIN, "read of a timerfd");
                ticks = 0;
            }
            taken[n] += ticks;
            now = clock_ns(CLOCKS[n]);
            passed = now + APART < first[n] ? 0 : (now + APART - first[n]) / PERIODS[n] + 1;
            CHECK(taken[n] <= passed, "timer %d: tick %llu is %llu ns early", n,
                  (unsigned long long)taken[n],
                  (unsigned long long)(first[n] + (taken[n] - 1) * PERIODS[n] - now));
            CHECK(first[n] + taken[n] * PERIODS[n] + LATE > before, "timer %d: %llu ticks are too few", n,
                  (unsigned long long)taken[n]);
        }
    } while (guest_running());
    guest_success();
}
