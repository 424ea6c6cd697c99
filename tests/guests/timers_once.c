/* One-shot timers, armed again as soon as they have fired: each firing comes exactly once, also
 * when it falls into the moment of the move. */
#include "guest.h"
#include <sys/time.h>

enum { TIMERS = 8, FIRST = 34, PATIENCE_S = 20 };

/* The last one is ITIMER_REAL. */
static volatile sig_atomic_t fired[TIMERS + 1];
static long armed[TIMERS + 1];
static uint64_t since[TIMERS + 1];
static int ids[TIMERS];

static void on_timer(int sig)
{
    fired[sig == SIGALRM ? TIMERS : sig - FIRST]++;
}

static void arm(int i)
{
    static unsigned state = 1;
    state = state * 1103515245 + 12345;
    /* Some expire within the freeze, some after it. */
    long us = 50 + (state >> 16) % (i % 2 ? 3000 : 20000);
    armed[i]++;
    since[i] = clock_ns(CLOCK_MONOTONIC);
    if (i == TIMERS) {
        struct itimerval once = {.it_value = {.tv_usec = us}};
        SYS(setitimer(ITIMER_REAL, &once, NULL));
        return;
    }
    struct itimerspec once = {.it_value = {.tv_nsec = us * 1000}};
    SYS(syscall(SYS_timer_settime, ids[i], 0, &once, NULL));
}

/* Is there nothing left of the time that it was armed for? */
static int over(int i)
{
    if (i == TIMERS) {
        struct itimerval now;
        SYS(getitimer(ITIMER_REAL, &now));
        return !now.it_value.tv_sec && !now.it_value.tv_usec;
    }
    struct itimerspec now;
    SYS(syscall(SYS_timer_gettime, ids[i], &now));
    return !now.it_value.tv_sec && !now.it_value.tv_nsec;
}

static void check(int i)
{
    long n = fired[i];
    CHECK(n <= armed[i], "timer %d was armed %ld times and fired %ld times", i, armed[i], n);
    if (n == armed[i]) {
        CHECK(!n || over(i), "timer %d has not expired yet, but its signal has come", i);
        arm(i);
    } else
        CHECK(clock_ns(CLOCK_MONOTONIC) - since[i] < PATIENCE_S * NS_PER_S, "timer %d is lost", i);
}

int main(void)
{
    guest_begin();
    sigset_t handled;
    sigemptyset(&handled);
    struct sigaction act = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
    for (int i = 0; i <= TIMERS; i++) {
        int sig = i == TIMERS ? SIGALRM : FIRST + i;
        SYS(sigaction(sig, &act, NULL));
        sigaddset(&handled, sig);
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig};
        if (i < TIMERS)
            SYS(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &ids[i]));
    }
    guest_ready();
    int more = 1;
    for (uint64_t turn = 0; more; turn++) {
        for (int i = 0; i <= TIMERS; i++)
            check(i);
        if (turn % 2048)
            continue;
        sigprocmask(SIG_BLOCK, &handled, NULL);
        more = guest_running();
        sigprocmask(SIG_UNBLOCK, &handled, NULL);
    }
    for (int i = 0; i <= TIMERS; i++)
        while (fired[i] < armed[i])
            CHECK(clock_ns(CLOCK_MONOTONIC) - since[i] < PATIENCE_S * NS_PER_S, "timer %d is lost", i);
    struct timespec moment = {.tv_nsec = 20000000};
    nanosleep(&moment, NULL);
    for (int i = 0; i <= TIMERS; i++)
        CHECK_EQ(fired[i], armed[i], "firings");
    guest_success();
}
