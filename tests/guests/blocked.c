/* Calls that block until something comes: none may return before it does, none with EINTR
 * but those that a handled signal ends. At the end each is woken and must say so. */
#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

struct call {
    const char *name;
    void (*prepare)(struct call *);
    long (*block)(struct call *); /* the result, or -errno */
    void (*wake)(struct call *);
    long want;
    pthread_t thread;
    int in, out;
    uint32_t word;
    sem_t sem;
    pthread_mutex_t lock;
    volatile int returned, waking;
};

static long value(long n)
{
    return n < 0 ? -errno : n;
}

static void make_pipe(struct call *c)
{
    int ends[2];
    SYS(pipe(ends));
    c->in = ends[0];
    c->out = ends[1];
}

static void write_byte(struct call *c)
{
    CHECK_EQ(write(c->out, "x", 1), 1, "write of the waking byte");
}

static long block_read(struct call *c)
{
    char byte;
    return value(read(c->in, &byte, 1));
}

/* A pipe that is full: the writer waits until it is read. */
static void make_full_pipe(struct call *c)
{
    char page[PAGE] = {0};
    make_pipe(c);
    SYS(fcntl(c->out, F_SETFL, O_NONBLOCK));
    while (write(c->out, page, sizeof(page)) > 0)
        ;
    SYS(fcntl(c->out, F_SETFL, 0));
}

static long block_write(struct call *c)
{
    return value(write(c->out, "x", 1));
}

static void read_page(struct call *c)
{
    char page[PAGE];
    CHECK_EQ(read(c->in, page, sizeof(page)), PAGE, "read of the full pipe");
}

static void make_eventfd(struct call *c)
{
    c->in = c->out = SYS(eventfd(0, 0));
}

static long block_eventfd(struct call *c)
{
    uint64_t n;
    return value(read(c->in, &n, sizeof(n)));
}

static void wake_eventfd(struct call *c)
{
    uint64_t n = 1;
    CHECK_EQ(write(c->out, &n, sizeof(n)), sizeof(n), "write to the eventfd");
}

static void make_timerfd(struct call *c)
{
    c->in = SYS(timerfd_create(CLOCK_MONOTONIC, 0));
}

static void wake_timerfd(struct call *c)
{
    SYS(timerfd_settime(c->in, 0, &(struct itimerspec){.it_value = {.tv_nsec = 1}}, NULL));
}

static long block_poll(struct call *c)
{
    struct pollfd poll_in = {.fd = c->in, .events = POLLIN};
    return value(poll(&poll_in, 1, -1));
}

static long block_ppoll(struct call *c)
{
    struct pollfd poll_in = {.fd = c->in, .events = POLLIN};
    return value(ppoll(&poll_in, 1, NULL, NULL));
}

static long block_select(struct call *c)
{
    fd_set set;
    FD_ZERO(&set);
    FD_SET(c->in, &set);
    return value(select(c->in + 1, &set, NULL, NULL, NULL));
}

static long block_epoll(struct call *c)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    int epoll = SYS(epoll_create1(0));
    SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, c->in, &event));
    long n = value(epoll_wait(epoll, &event, 1, -1));
    CHECK(n != 1 || event.data.u64 == 77, "epoll data");
    return n;
}

static void no_prepare(struct call *c)
{
    (void)c;
}

static long block_futex(struct call *c)
{
    return value(syscall(SYS_futex, &c->word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0));
}

static void wake_futex(struct call *c)
{
    c->word = 1;
    SYS(syscall(SYS_futex, &c->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
}

static void make_sem(struct call *c)
{
    SYS(sem_init(&c->sem, 0, 0));
}

static long block_sem(struct call *c)
{
    return value(sem_wait(&c->sem));
}

static void wake_sem(struct call *c)
{
    SYS(sem_post(&c->sem));
}

static void make_lock(struct call *c)
{
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_lock(&c->lock);
}

static long block_lock(struct call *c)
{
    return -pthread_mutex_lock(&c->lock);
}

static void wake_lock(struct call *c)
{
    pthread_mutex_unlock(&c->lock);
}

static long block_sigwait(struct call *c)
{
    (void)c;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    siginfo_t info;
    return value(sigwaitinfo(&set, &info));
}

static void send_usr1(struct call *c)
{
    pthread_kill(c->thread, SIGUSR1);
}

static long block_signalfd(struct call *c)
{
    struct signalfd_siginfo info;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    c->in = SYS(signalfd(-1, &set, 0));
    return value(read(c->in, &info, sizeof(info)));
}

static volatile sig_atomic_t handled;

static void on_usr2(int sig)
{
    handled += sig == SIGUSR2;
}

/* USR2 is blocked in all threads but these three. */
static void allow_usr2(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static long block_pause(struct call *c)
{
    (void)c;
    allow_usr2();
    return value(pause());
}

static long block_sigsuspend(struct call *c)
{
    (void)c;
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGUSR2);
    return value(sigsuspend(&all));
}

static long block_handled_read(struct call *c)
{
    allow_usr2();
    return block_read(c);
}

static void send_usr2(struct call *c)
{
    pthread_kill(c->thread, SIGUSR2);
}

static struct call calls[] = {
    {.name = "read of a pipe", .prepare = make_pipe, .block = block_read, .wake = write_byte, .want = 1},
    {.name = "write to a full pipe", .prepare = make_full_pipe, .block = block_write, .wake = read_page, .want = 1},
    {.name = "read of an eventfd", .prepare = make_eventfd, .block = block_eventfd, .wake = wake_eventfd, .want = 8},
    {.name = "read of a timerfd", .prepare = make_timerfd, .block = block_eventfd, .wake = wake_timerfd, .want = 8},
    {.name = "poll", .prepare = make_pipe, .block = block_poll, .wake = write_byte, .want = 1},
    {.name = "ppoll", .prepare = make_pipe, .block = block_ppoll, .wake = write_byte, .want = 1},
    {.name = "select", .prepare = make_pipe, .block = block_select, .wake = write_byte, .want = 1},
    {.name = "epoll_wait", .prepare = make_pipe, .block = block_epoll, .wake = write_byte, .want = 1},
    {.name = "futex", .prepare = no_prepare, .block = block_futex, .wake = wake_futex, .want = 0},
    {.name = "sem_wait", .prepare = make_sem, .block = block_sem, .wake = wake_sem, .want = 0},
    {.name = "mutex", .prepare = make_lock, .block = block_lock, .wake = wake_lock, .want = 0},
    {.name = "sigwaitinfo", .prepare = no_prepare, .block = block_sigwait, .wake = send_usr1, .want = SIGUSR1},
    {.name = "signalfd", .prepare = no_prepare, .block = block_signalfd, .wake = send_usr1, .want = 128},
    {.name = "pause", .prepare = no_prepare, .block = block_pause, .wake = send_usr2, .want = -EINTR},
    {.name = "sigsuspend", .prepare = no_prepare, .block = block_sigsuspend, .wake = send_usr2, .want = -EINTR},
    {.name = "read ended by a signal", .prepare = make_pipe, .block = block_handled_read, .wake = send_usr2, .want = -EINTR},
};

static void *thread(void *arg)
{
    struct call *c = arg;
    long got = c->block(c);
    CHECK(c->waking, "%s returned %ld before it was woken", c->name, got);
    CHECK(got == c->want, "%s returned %ld, wanted %ld", c->name, got, c->want);
    c->returned = 1;
    return NULL;
}

int main(int argc, char **argv)
{
    guest_begin();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    struct sigaction act = {.sa_handler = on_usr2};
    SYS(sigaction(SIGUSR2, &act, NULL));
    const char *only = argc > 1 ? argv[1] : NULL;
    for (size_t i = 0; i < COUNT(calls); i++)
        if (!only || !strcmp(only, calls[i].name)) {
            calls[i].prepare(&calls[i]);
            CHECK_EQ(pthread_create(&calls[i].thread, NULL, thread, &calls[i]), 0, "pthread_create");
        }
    guest_ready();
    while (guest_running())
        ;
    for (size_t i = 0; i < COUNT(calls); i++) {
        struct call *c = &calls[i];
        if (!c->thread)
            continue;
        c->waking = 1;
        c->wake(c);
        for (int n = 0; n < 5000 && !c->returned; n++)
            usleep(1000);
        CHECK(c->returned, "%s was woken and does not return", c->name);
        pthread_join(c->thread, NULL);
    }
    CHECK(only || handled == 3, "%d handled signals, wanted 3", (int)handled);
    guest_success();
}
