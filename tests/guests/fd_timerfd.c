/* timerfd: interval, rest, unread expirations, and that a periodic one with an unread
 * expiration fires again after it was read. */
#include "guest.h"
#include <poll.h>
#include <sys/timerfd.h>

static int create(int clock, int flags, long first_ms, long interval_ms)
{
    int fd = SYS(timerfd_create(clock, flags));
    struct itimerspec spec = {
        .it_value = {.tv_sec = first_ms / 1000, .tv_nsec = first_ms % 1000 * 1000000},
        .it_interval = {.tv_sec = interval_ms / 1000, .tv_nsec = interval_ms % 1000 * 1000000}};
    SYS(timerfd_settime(fd, 0, &spec, NULL));
    return fd;
}

static uint64_t expirations(int fd)
{
    uint64_t n;
    if (read(fd, &n, 8) == 8)
        return n;
    CHECK(errno == EAGAIN, "read of a timerfd: %s", strerror(errno));
    return 0;
}

static void readable(int fd, const char *what)
{
    struct pollfd in = {.fd = fd, .events = POLLIN};
    CHECK_EQ(poll(&in, 1, 20000), 1, what);
}

int main(void)
{
    guest_begin();
    int fast = create(CLOCK_MONOTONIC, TFD_NONBLOCK, 7, 7);
    int unread = create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC, 1, 11);
    int real = create(CLOCK_REALTIME, TFD_NONBLOCK, 9, 9);
    int boot = create(CLOCK_BOOTTIME, TFD_NONBLOCK, 5, 0);
    int later = create(CLOCK_MONOTONIC, TFD_NONBLOCK, 100000, 0);
    int idle = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    readable(unread, "the first expiration");
    readable(boot, "the one-shot timer");
    guest_ready();
    do {
        struct itimerspec now;
        SYS(timerfd_gettime(unread, &now));
        CHECK_EQ(now.it_interval.tv_nsec, 11000000, "interval");
        SYS(timerfd_gettime(later, &now));
        CHECK(now.it_value.tv_sec > 10 && now.it_value.tv_sec < 100, "%ld s left of 100",
              (long)now.it_value.tv_sec);
        SYS(timerfd_gettime(idle, &now));
        CHECK(!now.it_value.tv_sec && !now.it_value.tv_nsec, "the idle timer is armed");
        readable(fast, "the fast timer");
        CHECK(expirations(fast) > 0, "no expiration of the fast timer");
        readable(real, "the timer on the real-time clock");
        CHECK(expirations(real) > 0, "no expiration on the real-time clock");
        CHECK_EQ(expirations(idle) + expirations(later), 0, "expirations of timers not due");
        CHECK_EQ(SYS(fcntl(unread, F_GETFD)), FD_CLOEXEC, "close-on-exec");
    } while (guest_running());
    CHECK(expirations(unread) > 0, "the unread expirations are lost");
    readable(unread, "the timer with unread expirations fires again");
    CHECK(expirations(unread) > 0, "no expiration after the unread ones");
    CHECK_EQ(expirations(boot), 1, "the unread expiration of the one-shot timer");
    guest_success();
}
