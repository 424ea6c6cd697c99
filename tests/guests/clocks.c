/* CLOCK_MONOTONIC and CLOCK_BOOTTIME go on from where they were, together. */
#include "guest.h"
#include <sys/sysinfo.h>
#include <sys/timerfd.h>

int main(void)
{
    guest_begin();
    int64_t apart = (int64_t)(clock_ns(CLOCK_BOOTTIME) - clock_ns(CLOCK_MONOTONIC));
    uint64_t boot = clock_ns(CLOCK_BOOTTIME);
    /* An absolute time far away, on both clocks. */
    int timers[2] = {SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)),
                     SYS(timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK))};
    uint64_t at[2] = {clock_ns(CLOCK_MONOTONIC) + 1000 * NS_PER_S, boot + 1000 * NS_PER_S};
    for (int i = 0; i < 2; i++) {
        struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(at[i] / NS_PER_S)}};
        at[i] -= at[i] % NS_PER_S;
        SYS(timerfd_settime(timers[i], TFD_TIMER_ABSTIME, &spec, NULL));
    }
    guest_ready();
    do {
        uint64_t now = clock_ns(CLOCK_BOOTTIME);
        CHECK(now >= boot && now - boot < MAX_CLOCK_JUMP_NS, "CLOCK_BOOTTIME: %llu, then %llu",
              (unsigned long long)boot, (unsigned long long)now);
        boot = now;
        int64_t apart_now = (int64_t)(clock_ns(CLOCK_BOOTTIME) - clock_ns(CLOCK_MONOTONIC));
        CHECK(llabs(apart_now - apart) < (int64_t)MAX_CLOCK_JUMP_NS,
              "the two clocks moved apart by %lld ns", (long long)(apart_now - apart));
        for (int i = 0; i < 2; i++) {
            struct itimerspec rest;
            SYS(timerfd_gettime(timers[i], &rest));
            uint64_t clock = clock_ns(i ? CLOCK_BOOTTIME : CLOCK_MONOTONIC);
            int64_t off = (int64_t)(clock + (uint64_t)rest.it_value.tv_sec * NS_PER_S +
                                    (uint64_t)rest.it_value.tv_nsec - at[i]);
            CHECK(llabs(off) < (int64_t)(3 * NS_PER_S), "an absolute timer is off by %lld ns",
                  (long long)off);
        }
    } while (guest_running());
    guest_success();
}
