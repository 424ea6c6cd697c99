/* Signals that find the program in the vdso (clock_gettime(2)), with handlers that sleep: most moves
 * find it in a handler that returns into the middle of such a function. */
#include "guest.h"
#include <sys/time.h>

static volatile sig_atomic_t handled;

static void on_alarm(int sig)
{
    (void)sig;
    struct timespec moment = {.tv_nsec = 3000000};
    while (nanosleep(&moment, &moment))
        CHECK_EQ(errno, EINTR, "nanosleep");
    handled++;
}

/* As long in the vdso as outside of it. */
static void turn(uint64_t *last)
{
    static volatile unsigned work;
    for (int i = 0; i < 100; i++) {
        uint64_t now = clock_ns(CLOCK_MONOTONIC);
        CHECK(now >= *last, "the clock went back");
        *last = now;
        for (int spin = 0; spin < 40; spin++)
            work += (unsigned)spin;
    }
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGALRM, &act, NULL));
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    uint64_t last = 0;
    guest_ready();
    int more = 1;
    while (more) {
        long before = handled;
        uint64_t begin = clock_ns(CLOCK_MONOTONIC);
        struct itimerval once = {.it_value.tv_usec = 200 + before % 7 * 50};
        SYS(setitimer(ITIMER_REAL, &once, NULL));
        while (handled == before) {
            turn(&last);
            CHECK(last < begin + 30 * NS_PER_S, "no signal comes");
        }
        sigprocmask(SIG_BLOCK, &alarm, NULL);
        more = guest_running();
        sigprocmask(SIG_UNBLOCK, &alarm, NULL);
    }
    guest_success();
}
