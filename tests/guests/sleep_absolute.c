/* Sleeps to an absolute time of each clock: they end when that clock says so, neither before nor
 * later than by a second and the pauses of the moves. */
#include "guest.h"
#include <pthread.h>

#define SLEEP_NS (3 * NS_PER_S)
#define SLACK_NS NS_PER_S

static const clockid_t CLOCKS[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI};

static int late(uint64_t due, clockid_t clock)
{
    uint64_t ended = clock_ns(clock);
    for (int i = 0; i < 200; i++) {
        /* The harness writes the pause down only after the move. */
        if (ended <= due + SLACK_NS + guest_pauses_ns())
            return 0;
        usleep(10000);
    }
    return 1;
}

static void *sleeper(void *arg)
{
    clockid_t clock = *(const clockid_t *)arg;
    while (!guest_stopping()) {
        uint64_t due = clock_ns(clock) + SLEEP_NS;
        struct timespec at = {(time_t)(due / NS_PER_S), (long)(due % NS_PER_S)};
        int error = clock_nanosleep(clock, TIMER_ABSTIME, &at, NULL);
        CHECK(error == 0, "clock %d: %s", clock, strerror(error));
        CHECK(clock_ns(clock) >= due, "clock %d: woken before its time", clock);
        CHECK(!late(due, clock), "clock %d: woken too late", clock);
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[COUNT(CLOCKS)];
    guest_begin();
    for (size_t i = 0; i < COUNT(CLOCKS); i++)
        CHECK(!pthread_create(&threads[i], NULL, sleeper, (void *)&CLOCKS[i]), "pthread_create");
    guest_ready();
    while (guest_running())
        ;
    for (size_t i = 0; i < COUNT(CLOCKS); i++)
        pthread_join(threads[i], NULL);
    guest_success();
}
