/* Timers on CPU time, of a thread, of another thread, of the process, set to a span or to a time:
 * they stand still with the job, and expire after the CPU time that they were set to. */
#include "guest.h"
#include <pthread.h>

#define SPAN_NS (200 * 1000000ULL)
/* Moves may cost a tick each, and the counting of CPU time is as coarse. */
#define SLACK_NS (150 * 1000000ULL)

enum { OWN, OTHER, PROCESS, KINDS, SIGNAL = 40 };

static volatile sig_atomic_t fired[KINDS];
static volatile int over;
static pthread_t burner;

static void on_timer(int sig)
{
    fired[sig - SIGNAL]++;
}

/* CPU time since the last call; 0 when the clock has begun anew. */
static uint64_t passed(clockid_t clock, uint64_t *last)
{
    uint64_t now = clock_ns(clock), before = *last;
    *last = now;
    return now > before ? now - before : 0;
}

static void *burn(void *unused)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    while (!over)
        for (volatile int i = 0; i < 10000; i++)
            ;
    return unused;
}

static void arm(int id, clockid_t clock, int absolute)
{
    uint64_t at = SPAN_NS + (absolute ? clock_ns(clock) : 0);
    struct itimerspec value = {.it_value = {(time_t)(at / NS_PER_S), (long)(at % NS_PER_S)}};
    SYS(syscall(SYS_timer_settime, id, absolute ? TIMER_ABSTIME : 0, &value, NULL));
}

int main(void)
{
    guest_begin();
    clockid_t clocks[KINDS] = {CLOCK_THREAD_CPUTIME_ID, 0, CLOCK_PROCESS_CPUTIME_ID};
    int ids[KINDS], turns[KINDS] = {0};
    uint64_t last[KINDS], spent[KINDS] = {0};
    struct sigaction act = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
    sigset_t handled;
    sigemptyset(&handled);
    CHECK(!pthread_create(&burner, NULL, burn, NULL), "pthread_create");
    CHECK(!pthread_getcpuclockid(burner, &clocks[OTHER]), "pthread_getcpuclockid");
    for (int n = 0; n < KINDS; n++) {
        SYS(sigaction(SIGNAL + n, &act, NULL));
        sigaddset(&handled, SIGNAL + n);
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGNAL + n};
        SYS(syscall(SYS_timer_create, clocks[n], &event, &ids[n]));
        last[n] = clock_ns(clocks[n]);
        arm(ids[n], clocks[n], 0);
    }
    guest_ready();
    int more = 1;
    while (more) {
        for (volatile int i = 0; i < 400000; i++)
            ;
        for (int n = 0; n < KINDS; n++) {
            int expired = fired[n];
            spent[n] += passed(clocks[n], &last[n]);
            CHECK(spent[n] < SPAN_NS + SLACK_NS || expired, "timer %d is late: %llu ms", n,
                  (unsigned long long)spent[n] / 1000000);
            if (!expired)
                continue;
            CHECK(spent[n] + SLACK_NS / 2 >= SPAN_NS, "timer %d is early: %llu ms", n,
                  (unsigned long long)spent[n] / 1000000);
            fired[n] = 0;
            spent[n] = 0;
            arm(ids[n], clocks[n], ++turns[n] % 2);
        }
        sigprocmask(SIG_BLOCK, &handled, NULL);
        more = guest_running();
        sigprocmask(SIG_UNBLOCK, &handled, NULL);
    }
    over = 1;
    pthread_join(burner, NULL);
    guest_success();
}
