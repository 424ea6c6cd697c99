/* Argument registers keep their values over a sleeping call, however it ends: by its timeout,
 * or with EINTR by a handler. The kernel keeps them, and compilers count on it. */
#include "guest.h"
#include <poll.h>
#include <sys/time.h>

static volatile sig_atomic_t alarms;

static void on_alarm(int sig)
{
    alarms += sig == SIGALRM;
}

struct args {
    long a[6];
};

/* The call, and its registers afterwards. */
static long call(long nr, const struct args *want)
{
    long result;
    struct args got;
    register long rdi asm("rdi") = want->a[0], rsi asm("rsi") = want->a[1];
    register long rdx asm("rdx") = want->a[2], r10 asm("r10") = want->a[3];
    register long r8 asm("r8") = want->a[4], r9 asm("r9") = want->a[5];
    asm volatile("syscall"
                 : "=a"(result), "+r"(rdi), "+r"(rsi), "+r"(rdx), "+r"(r10), "+r"(r8), "+r"(r9)
                 : "0"(nr)
                 : "rcx", "r11", "memory");
    got = (struct args){{rdi, rsi, rdx, r10, r8, r9}};
    for (int i = 0; i < 6; i++)
        CHECK(got.a[i] == want->a[i], "argument %d of call %ld was %lx and is %lx", i, nr,
              want->a[i], got.a[i]);
    return result;
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGALRM, &act, NULL));
    struct itimerval often = {.it_interval.tv_usec = 37000, .it_value.tv_usec = 37000};
    struct timespec span = {.tv_nsec = 25000000};
    const struct args sleeping = {{(long)&span, 0, 11, 12, 13, 14}};
    const struct args polling = {{0, 0, 25, 22, 23, 24}};
    SYS(setitimer(ITIMER_REAL, &often, NULL));
    sigset_t alarm;
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    guest_ready();
    do {
        SYS(sigprocmask(SIG_UNBLOCK, &alarm, NULL));
        uint64_t start = clock_ns(CLOCK_MONOTONIC);
        int before = alarms;
        int polls = (start >> 10) & 1;
        long result = polls ? call(SYS_poll, &polling) : call(SYS_nanosleep, &sleeping);
        uint64_t took = clock_ns(CLOCK_MONOTONIC) - start;
        CHECK(result == 0 || result == -EINTR, "the call answers %ld", result);
        SYS(sigprocmask(SIG_BLOCK, &alarm, NULL));
        if (result == -EINTR)
            CHECK(alarms != before, "EINTR, and no handler ran");
        else
            CHECK(took >= 25000000, "a call of 25 ms took %llu ns", (unsigned long long)took);
    } while (guest_running());
    guest_success();
}
