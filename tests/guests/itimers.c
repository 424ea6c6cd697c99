/* The three interval timers: their interval, the rest that never grows, and that they fire. */
#include "guest.h"
#include <sys/time.h>

static volatile sig_atomic_t real, virtual, prof;

static void on_signal(int sig)
{
    if (sig == SIGALRM)
        real++;
    else if (sig == SIGVTALRM)
        virtual++;
    else
        prof++;
}

static void arm(int which, long first_us, long interval_us)
{
    struct itimerval timer = {
        .it_value = {.tv_sec = first_us / 1000000, .tv_usec = first_us % 1000000},
        .it_interval = {.tv_sec = interval_us / 1000000, .tv_usec = interval_us % 1000000}};
    SYS(setitimer(which, &timer, NULL));
}

static void check_timer(int which, long interval_us, long first_us)
{
    struct itimerval now;
    SYS(getitimer(which, &now));
    CHECK_EQ(now.it_interval.tv_sec * 1000000 + now.it_interval.tv_usec, interval_us, "interval");
    long rest = now.it_value.tv_sec * 1000000 + now.it_value.tv_usec;
    CHECK(rest > 0, "timer %d is not armed", which);
    /* The kernel rounds processor-time timers up by one tick. */
    CHECK(rest <= first_us + 20000, "timer %d: %ld us left, more than ever set", which, rest);
}

static void burn(void)
{
    for (volatile int i = 0; i < 200000; i++)
        ;
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGALRM, &act, NULL));
    SYS(sigaction(SIGVTALRM, &act, NULL));
    SYS(sigaction(SIGPROF, &act, NULL));
    sigset_t timers;
    sigemptyset(&timers);
    sigaddset(&timers, SIGALRM);
    sigaddset(&timers, SIGVTALRM);
    sigaddset(&timers, SIGPROF);
    arm(ITIMER_REAL, 30000, 30000);
    arm(ITIMER_VIRTUAL, 20000, 20000);
    arm(ITIMER_PROF, 25000, 25000);
    guest_ready();
    int quiet = 0, last = 0, more = 1;
    while (more) {
        check_timer(ITIMER_REAL, 30000, 30000);
        check_timer(ITIMER_VIRTUAL, 20000, 20000);
        check_timer(ITIMER_PROF, 25000, 25000);
        burn();
        quiet = real == last ? quiet + 1 : 0;
        CHECK(quiet < 4000, "ITIMER_REAL has stopped firing");
        last = real;
        /* The turn's sleep must not see these signals: they are real ones. */
        sigprocmask(SIG_BLOCK, &timers, NULL);
        more = guest_running();
        sigprocmask(SIG_UNBLOCK, &timers, NULL);
    }
    int seen_virtual = virtual, seen_prof = prof;
    for (int i = 0; i < 20000 && (virtual == seen_virtual || prof == seen_prof); i++)
        burn();
    CHECK(virtual != seen_virtual, "ITIMER_VIRTUAL does not fire");
    CHECK(prof != seen_prof, "ITIMER_PROF does not fire");
    /* A one-shot timer of 100 s: the rest only shrinks. */
    arm(ITIMER_REAL, 100000000, 0);
    check_timer(ITIMER_REAL, 0, 100000000);
    guest_success();
}
