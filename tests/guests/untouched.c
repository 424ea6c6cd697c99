/* Threads blocked in calls with a timeout, signals pending and blocked, SIGTRAP ignored, timers
 * far away: what a supervisor must leave as it is. No sleep ends early, late or with EINTR.
 * `socket` as argument: with a UDP socket too. */
#include "guest.h"
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>

#define SLEEP_NS (3 * NS_PER_S)
#define SLACK_NS NS_PER_S

static int do_nanosleep(void)
{
    struct timespec t = {.tv_sec = SLEEP_NS / NS_PER_S};
    return nanosleep(&t, NULL) ? errno : 0;
}

static int do_poll(void)
{
    return poll(NULL, 0, SLEEP_NS / 1000000) ? errno : 0;
}

static int do_epoll_wait(void)
{
    static int epoll;
    if (!epoll)
        epoll = SYS(epoll_create1(0));
    struct epoll_event event;
    return epoll_wait(epoll, &event, 1, SLEEP_NS / 1000000) ? errno : 0;
}

static int do_futex(void)
{
    static uint32_t word;
    struct timespec t = {.tv_sec = SLEEP_NS / NS_PER_S};
    long value = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0);
    return value == -1 && errno == ETIMEDOUT ? 0 : value == -1 ? errno : EPROTO;
}

static const struct {
    const char *name;
    int (*call)(void);
} CALLS[] = {
    {"nanosleep", do_nanosleep},
    {"poll", do_poll},
    {"epoll_wait", do_epoll_wait},
    {"futex", do_futex},
};

static void *sleeper(void *arg)
{
    size_t which = (size_t)arg;
    while (!guest_stopping()) {
        uint64_t before = clock_ns(CLOCK_MONOTONIC), pauses = guest_pauses_ns();
        uint64_t stolen = guest_stolen_ns();
        int error = CALLS[which].call();
        uint64_t slept = clock_ns(CLOCK_MONOTONIC) - before;
        pauses = guest_pauses_ns() - pauses;
        stolen = guest_stolen_ns() - stolen;
        CHECK(error == 0, "%s: %s", CALLS[which].name, strerror(error));
        CHECK(slept >= SLEEP_NS, "%s: only %llu ns", CALLS[which].name, (unsigned long long)slept);
        CHECK(slept <= SLEEP_NS + SLACK_NS + pauses + stolen, "%s: %llu ns", CALLS[which].name,
              (unsigned long long)slept);
    }
    return NULL;
}

static void open_socket(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xefff4d09)};
    SYS(bind(SYS(socket(AF_INET, SOCK_DGRAM, 0)), (struct sockaddr *)&at, sizeof(at)));
}

int main(int argc, char **argv)
{
    guest_begin();
    if (argc > 1 && !strcmp(argv[1], "socket"))
        open_socket();
    signal(SIGTRAP, SIG_IGN);
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGRTMIN);
    SYS(sigprocmask(SIG_BLOCK, &blocked, NULL));
    SYS(kill(getpid(), SIGUSR1));
    for (int i = 0; i < 3; i++)
        SYS(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i}));
    SYS(setitimer(ITIMER_REAL, &(struct itimerval){.it_value.tv_sec = 100000}, NULL));
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
    SYS(timer_settime(timer, 0, &(struct itimerspec){.it_value.tv_sec = 100000}, NULL));
    pthread_t threads[COUNT(CALLS)];
    for (size_t i = 0; i < COUNT(CALLS); i++)
        CHECK(!pthread_create(&threads[i], NULL, sleeper, (void *)i), "pthread_create");
    guest_ready();
    for (size_t i = 0; i < COUNT(CALLS); i++)
        CHECK(!pthread_join(threads[i], NULL), "pthread_join");
    struct sigaction trap;
    SYS(sigaction(SIGTRAP, NULL, &trap));
    CHECK(trap.sa_handler == SIG_IGN, "SIGTRAP is not ignored any more");
    siginfo_t info;
    SYS(sigtimedwait(&blocked, &info, &(struct timespec){0}));
    CHECK_EQ(info.si_signo, SIGUSR1, "the first pending signal");
    for (int i = 0; i < 3; i++) {
        SYS(sigtimedwait(&blocked, &info, &(struct timespec){0}));
        CHECK_EQ(info.si_value.sival_int, i, "a queued signal");
    }
    CHECK(sigtimedwait(&blocked, &info, &(struct timespec){0}) == -1, "one signal too many");
    guest_success();
}
