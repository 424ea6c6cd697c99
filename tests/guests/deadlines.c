/* Absolute times on the job's clocks: sleeps, timers, timerfds, waits for a futex; and the clocks
 * and the host name of a program that is executed after a move. */
#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <sys/wait.h>

enum { STEP = 3000000 };

static volatile sig_atomic_t fired;

static void on_timer(int sig)
{
    (void)sig;
    fired = 1;
}

static struct timespec after(clockid_t clock, uint64_t ns)
{
    uint64_t at = clock_ns(clock) + ns;
    return (struct timespec){.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)};
}

static void past(clockid_t clock, const struct timespec *at, const char *what)
{
    uint64_t wanted = (uint64_t)at->tv_sec * NS_PER_S + (uint64_t)at->tv_nsec;
    uint64_t now = clock_ns(clock);
    CHECK(now >= wanted, "%s ended early: at %llu instead of %llu", what, (unsigned long long)now,
          (unsigned long long)wanted);
    CHECK(now < wanted + 60 * NS_PER_S, "%s ended late: at %llu instead of %llu", what,
          (unsigned long long)now, (unsigned long long)wanted);
}

static void one_clock(clockid_t clock)
{
    struct timespec at = after(clock, STEP);
    CHECK_EQ(clock_nanosleep(clock, TIMER_ABSTIME, &at, NULL), 0, "clock_nanosleep");
    past(clock, &at, "clock_nanosleep");
    int fd = SYS(timerfd_create(clock, TFD_CLOEXEC));
    struct itimerspec spec = {.it_value = at = after(clock, STEP)};
    SYS(timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL));
    struct pollfd ready = {.fd = fd, .events = POLLIN};
    CHECK_EQ(SYS(poll(&ready, 1, 10000)), 1, "poll of a timerfd");
    past(clock, &at, "timerfd");
    close(fd);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3};
    SYS(timer_create(clock, &event, &timer));
    fired = 0;
    spec.it_value = at = after(clock, STEP);
    SYS(timer_settime(timer, TIMER_ABSTIME, &spec, NULL));
    for (int i = 0; i < 5000 && !fired; i++)
        usleep(1000);
    CHECK(fired, "the timer has not fired");
    past(clock, &at, "timer");
    SYS(timer_delete(timer));
}

static void futexes(void)
{
    static int word;
    struct timespec at = after(CLOCK_MONOTONIC, STEP);
    long got = syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &at, NULL, ~0);
    CHECK(got == -1 && errno == ETIMEDOUT, "futex: %ld, %s", got, strerror(errno));
    past(CLOCK_MONOTONIC, &at, "futex");
}

/* Says what a fresh program sees. */
static int show(void)
{
    struct utsname names;
    SYS(uname(&names));
    printf("%s %llu\n", names.nodename, (unsigned long long)clock_ns(CLOCK_MONOTONIC));
    fflush(stdout);
    _exit(0);
}

static void executed(void)
{
    int out[2], status;
    SYS(pipe2(out, O_CLOEXEC));
    uint64_t before = clock_ns(CLOCK_MONOTONIC);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        SYS(dup2(out[1], 1));
        execl("/proc/self/exe", "deadlines", "show", NULL);
        _exit(127);
    }
    close(out[1]);
    char text[256] = "", name[100];
    unsigned long long seen = 0;
    CHECK(SYS(read(out[0], text, sizeof(text) - 1)) > 0, "nothing from the program");
    close(out[0]);
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 0, "status of the program");
    CHECK_EQ(sscanf(text, "%99s %llu", name, &seen), 2, "what the program said");
    struct utsname names;
    SYS(uname(&names));
    CHECK(!strcmp(name, names.nodename), "host name %s, in the program %s", names.nodename, name);
    CHECK(seen >= before && seen <= clock_ns(CLOCK_MONOTONIC),
          "CLOCK_MONOTONIC of the program: %llu, before %llu", seen, (unsigned long long)before);
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 1)
        return show();
    guest_begin();
    signal(SIGRTMIN + 3, on_timer);
    struct utsname was, is;
    SYS(uname(&was));
    guest_ready();
    do {
        SYS(uname(&is));
        CHECK(!strcmp(was.nodename, is.nodename), "host name was %s, is %s", was.nodename,
              is.nodename);
        one_clock(CLOCK_MONOTONIC);
        one_clock(CLOCK_BOOTTIME);
        futexes();
        executed();
        struct sysinfo info;
        SYS(sysinfo(&info));
        long boot = (long)(clock_ns(CLOCK_BOOTTIME) / NS_PER_S);
        CHECK(labs(info.uptime - boot) <= 2, "uptime %ld, CLOCK_BOOTTIME %ld", info.uptime, boot);
    } while (guest_running());
    guest_success();
}
