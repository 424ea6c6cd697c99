/* POSIX timers: identifiers, clocks, ways of notification, intervals, overruns, disarmed and
 * one-shot timers. */
#include "guest.h"

struct timer {
    const char *name;
    clockid_t clock;
    int notify, sig, flags;
    long first_ms, interval_ms;
    timer_t id;
};

static struct timer timers[] = {
    {"monotonic", CLOCK_MONOTONIC, SIGEV_SIGNAL, 34, 0, 10, 10, 0},
    {"realtime", CLOCK_REALTIME, SIGEV_SIGNAL, 35, 0, 15, 15, 0},
    {"boottime", CLOCK_BOOTTIME, SIGEV_SIGNAL, 36, 0, 20, 20, 0},
    {"process time", CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, 37, 0, 10, 10, 0},
    {"thread", CLOCK_MONOTONIC, SIGEV_THREAD_ID, 38, 0, 10, 10, 0},
    {"none", CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 100000, 100000, 0},
    {"disarmed", CLOCK_MONOTONIC, SIGEV_SIGNAL, 39, 0, 0, 0, 0},
    {"absolute", CLOCK_MONOTONIC, SIGEV_SIGNAL, 40, TIMER_ABSTIME, 100000, 0, 0},
};
static volatile sig_atomic_t fired[65];
static volatile int wrong_value;

static void on_timer(int sig, siginfo_t *info, void *context)
{
    (void)context;
    fired[sig]++;
    if (info->si_code != SI_TIMER || info->si_value.sival_int != sig * 1000)
        wrong_value = sig;
}

static struct timespec ms(long n)
{
    return (struct timespec){.tv_sec = n / 1000, .tv_nsec = n % 1000 * 1000000};
}

static void create(struct timer *t)
{
    struct sigevent event = {.sigev_notify = t->notify, .sigev_signo = t->sig};
    event.sigev_value.sival_int = t->sig * 1000;
    if (t->notify == SIGEV_THREAD_ID)
        event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    int id;
    SYS(syscall(SYS_timer_create, t->clock, &event, &id));
    t->id = (timer_t)(intptr_t)id;
    struct itimerspec spec = {.it_value = ms(t->first_ms), .it_interval = ms(t->interval_ms)};
    if (t->flags & TIMER_ABSTIME) {
        struct timespec now;
        SYS(clock_gettime(t->clock, &now));
        spec.it_value.tv_sec += now.tv_sec;
    }
    SYS(syscall(SYS_timer_settime, (int)(intptr_t)t->id, t->flags, &spec, NULL));
}

static void check_timer(const struct timer *t)
{
    struct itimerspec now;
    SYS(syscall(SYS_timer_gettime, (int)(intptr_t)t->id, &now));
    long interval = now.it_interval.tv_sec * 1000 + now.it_interval.tv_nsec / 1000000;
    long rest = now.it_value.tv_sec * 1000 + now.it_value.tv_nsec / 1000000;
    CHECK(interval == t->interval_ms, "%s: interval %ld ms, was %ld", t->name, interval, t->interval_ms);
    CHECK(rest <= t->first_ms + 20, "%s: %ld ms left, more than ever set", t->name, rest);
    CHECK((now.it_value.tv_sec || now.it_value.tv_nsec) == (t->first_ms != 0), "%s: armed or not",
          t->name);
    if (t->first_ms == 100000)
        CHECK(rest > 10000, "%s: only %ld ms left of 100 s", t->name, rest);
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigset_t handled;
    sigemptyset(&handled);
    for (int sig = 34; sig <= 42; sig++) {
        SYS(sigaction(sig, &act, NULL));
        sigaddset(&handled, sig);
    }
    /* A gap in the identifiers: the second timer of these two is deleted. */
    struct timer gone = {"gone", CLOCK_MONOTONIC, SIGEV_SIGNAL, 41, 0, 100000, 0, 0};
    create(&timers[0]);
    create(&gone);
    for (size_t i = 1; i < COUNT(timers); i++)
        create(&timers[i]);
    SYS(syscall(SYS_timer_delete, (int)(intptr_t)gone.id));
    guest_ready();
    int quiet[65] = {0}, last[65] = {0}, more = 1;
    while (more) {
        for (size_t i = 0; i < COUNT(timers); i++)
            check_timer(&timers[i]);
        for (volatile int i = 0; i < 100000; i++)
            ;
        for (int sig = 34; sig <= 38; sig++) {
            quiet[sig] = fired[sig] == last[sig] ? quiet[sig] + 1 : 0;
            last[sig] = fired[sig];
            CHECK(quiet[sig] < 4000, "the timer of signal %d has stopped", sig);
        }
        CHECK(!wrong_value, "signal %d had the wrong si_code or si_value", wrong_value);
        CHECK(!fired[39] && !fired[40] && !fired[41], "a timer fired that must not");
        CHECK(syscall(SYS_timer_gettime, (int)(intptr_t)gone.id, &(struct itimerspec){0}) == -1,
              "the deleted timer exists");
        sigprocmask(SIG_BLOCK, &handled, NULL);
        more = guest_running();
        sigprocmask(SIG_UNBLOCK, &handled, NULL);
    }
    /* A timer made now gets an identifier that none of the others has. */
    struct timer fresh = {"fresh", CLOCK_MONOTONIC, SIGEV_SIGNAL, 42, 0, 100000, 0, 0};
    create(&fresh);
    for (size_t i = 0; i < COUNT(timers); i++)
        CHECK(fresh.id != timers[i].id, "identifier %d given twice", (int)(intptr_t)fresh.id);
    guest_success();
}
