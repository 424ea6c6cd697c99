/* Signals that are ignored wake no sleeper: calls that never restart after a signal
 * (signal(7)) are given many of them and must not answer EINTR, and their timeouts must
 * end. Prints one line per call: its name and "ok", "absent" or what went wrong. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int ep, event, sem;
static aio_context_t aio;
static sigset_t waited;
static atomic_int tid, over;
static long result;
static int error;

struct spec {
    long long sec, nsec;
};

/* Each call waits for ever, or for a quarter of a second. */
static long wait_epoll(int finite)
{
    struct epoll_event e;
    return syscall(SYS_epoll_wait, ep, &e, 1, finite ? 250 : -1);
}

static long wait_epoll_pwait(int finite)
{
    struct epoll_event e;
    return syscall(SYS_epoll_pwait, ep, &e, 1, finite ? 250 : -1, NULL, 8);
}

static long wait_epoll_pwait2(int finite)
{
    struct epoll_event e;
    struct spec t = {0, 250000000};
    return syscall(441, ep, &e, 1, finite ? &t : NULL, NULL, 8);
}

static long wait_semop(int finite)
{
    struct sembuf down = {0, -1, 0};
    (void)finite;
    return syscall(SYS_semop, sem, &down, 1);
}

static long wait_semtimedop(int finite)
{
    struct sembuf down = {0, -1, 0};
    struct spec t = {0, 250000000};
    return syscall(SYS_semtimedop, sem, &down, 1, finite ? &t : NULL);
}

static long wait_sigtimedwait(int finite)
{
    struct spec t = {0, 250000000};
    return syscall(SYS_rt_sigtimedwait, &waited, NULL, finite ? &t : NULL, 8);
}

static long wait_io_getevents(int finite)
{
    struct io_event e;
    struct spec t = {0, 250000000};
    return syscall(SYS_io_getevents, aio, 1, 1, &e, finite ? &t : NULL);
}

static void wake_event(void) { eventfd_write(event, 1); }

static void wake_sem(void)
{
    struct sembuf up = {0, 1, 0};
    semop(sem, &up, 1);
}

static void wake_signal(void) { syscall(SYS_tgkill, getpid(), tid, SIGUSR2); }

static void wake_aio(void)
{
    static char byte;
    static struct iocb read = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_nbytes = 1};
    struct iocb *all[] = {&read};
    read.aio_fildes = open("/dev/zero", 0);
    read.aio_buf = (unsigned long)&byte;
    syscall(SYS_io_submit, aio, 1, all);
}

struct call {
    const char *name;
    long nr;
    long (*wait)(int finite);
    void (*wake)(void);
    long woken;
    /* What a timeout answers: 0 for the result 0. */
    int timeout;
};

static const struct call calls[] = {
    {"epoll_wait", SYS_epoll_wait, wait_epoll, wake_event, 1, 0},
    {"epoll_pwait", SYS_epoll_pwait, wait_epoll_pwait, wake_event, 1, 0},
    {"epoll_pwait2", 441, wait_epoll_pwait2, wake_event, 1, 0},
    {"semop", SYS_semop, wait_semop, wake_sem, 0, -1},
    {"semtimedop", SYS_semtimedop, wait_semtimedop, wake_sem, 0, EAGAIN},
    {"rt_sigtimedwait", SYS_rt_sigtimedwait, wait_sigtimedwait, wake_signal, SIGUSR2, EAGAIN},
    {"io_getevents", SYS_io_getevents, wait_io_getevents, wake_aio, 1, 0},
};

static const struct call *call;
static int finite;

static void *sleeper(void *arg)
{
    tid = syscall(SYS_gettid);
    result = call->wait(finite);
    error = result < 0 ? errno : 0;
    over = 1;
    return arg;
}

/* It sleeps in the call, and no signal is left for it. */
static int asleep(void)
{
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", (int)tid);
    FILE *f = fopen(path, "r");
    long nr = -1;
    if (!f || fscanf(f, "%ld", &nr) != 1)
        nr = -1;
    if (f)
        fclose(f);
    snprintf(path, sizeof path, "/proc/self/task/%d/status", (int)tid);
    f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    if (f)
        fclose(f);
    char *state = strstr(text, "State:\t"), *pending = strstr(text, "SigPnd:\t");
    return nr == call->nr && state && state[7] == 'S' && pending &&
           strtoull(pending + 8, NULL, 16) == 0;
}

static void until_asleep(void)
{
    while (!over && !asleep())
        sched_yield();
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static const int ignored[] = {SIGWINCH, SIGCHLD, SIGURG, SIGUSR1, SIGTSTP};
#define IGNORED (int)(sizeof ignored / sizeof *ignored)

/* One call, woken at last by what it waits for, or ended by its timeout. */
static void try(const char *how)
{
    pthread_t t;
    over = tid = 0;
    double start = now();
    pthread_create(&t, NULL, sleeper, NULL);
    while (!tid)
        sched_yield();
    for (int i = 0; !over && (finite || i < 2 * IGNORED); i++) {
        until_asleep();
        syscall(SYS_tgkill, getpid(), tid, ignored[i % IGNORED]);
    }
    until_asleep();
    if (!finite && !over)
        call->wake();
    pthread_join(t, NULL);
    double took = now() - start;
    long want = !finite ? call->woken : call->timeout ? -1 : 0;
    int want_error = !finite ? 0 : call->timeout;
    if (result != want || error != want_error)
        printf("%s %s: %ld %s\n", call->name, how, result, strerror(error));
    else if (finite && took < 0.25)
        printf("%s %s: ended after %.3f s\n", call->name, how, took);
    else
        printf("%s %s ok\n", call->name, how);
    uint64_t drain;
    if (!finite)
        read(event, &drain, sizeof drain);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGUSR1, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    ep = epoll_create1(0);
    event = eventfd(0, EFD_NONBLOCK);
    struct epoll_event in = {.events = EPOLLIN};
    epoll_ctl(ep, EPOLL_CTL_ADD, event, &in);
    sem = semget(IPC_PRIVATE, 1, 0600);
    int has_aio = syscall(SYS_io_setup, 1, &aio) == 0;
    sigemptyset(&waited);
    sigaddset(&waited, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &waited, NULL);
    for (call = calls; call < calls + sizeof calls / sizeof *calls; call++) {
        if ((call->wake == wake_sem && sem < 0) || (call->wake == wake_aio && !has_aio)) {
            printf("%s absent\n", call->name);
            continue;
        }
        finite = 0;
        try("woken");
        finite = 1;
        if (call->timeout >= 0)
            try("timed");
    }
    semctl(sem, 0, IPC_RMID);
    return 0;
}
