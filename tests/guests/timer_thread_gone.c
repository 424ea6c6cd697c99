/* POSIX timers that tell a thread which has ended (SIGEV_THREAD_ID): they exist and can be asked
 * and deleted, and tell nobody. */
#include "guest.h"
#include <pthread.h>

enum { SIG = 36 };

static int ids[3];

static void *creator(void *unused)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIG};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    SYS(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &ids[0]));
    SYS(syscall(SYS_timer_create, CLOCK_THREAD_CPUTIME_ID, &event, &ids[1]));
    SYS(syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &ids[2]));
    struct itimerspec often = {{0, 5000000}, {0, 5000000}}, late = {{7, 0}, {1000, 0}};
    SYS(syscall(SYS_timer_settime, ids[0], 0, &often, NULL));
    SYS(syscall(SYS_timer_settime, ids[2], 0, &late, NULL));
    return unused;
}

static volatile sig_atomic_t told;

static void on_signal(int sig)
{
    told = sig;
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_signal};
    SYS(sigaction(SIG, &act, NULL));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIG);
    pthread_t thread;
    /* Only this thread could be told instead, and would notice. */
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    CHECK_EQ(pthread_create(&thread, NULL, creator, NULL), 0, "pthread_create");
    CHECK_EQ(pthread_join(thread, NULL), 0, "pthread_join");
    SYS(sigprocmask(SIG_UNBLOCK, &set, NULL));
    guest_ready();
    do {
        struct itimerspec value;
        CHECK(!told, "a timer of a dead thread told another one");
        SYS(syscall(SYS_timer_gettime, ids[0], &value));
        CHECK_EQ(value.it_interval.tv_nsec, 5000000, "interval");
        SYS(syscall(SYS_timer_gettime, ids[1], &value));
        SYS(syscall(SYS_timer_gettime, ids[2], &value));
        CHECK_EQ(value.it_interval.tv_sec, 7, "interval");
        CHECK(value.it_value.tv_sec > 900, "%ld s left", (long)value.it_value.tv_sec);
    } while (guest_running());
    for (size_t i = 0; i < COUNT(ids); i++)
        SYS(syscall(SYS_timer_delete, ids[i]));
    guest_success();
}
