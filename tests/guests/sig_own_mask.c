/* Calls that wait with a signal mask of their own: a signal that only they let in ends each of them
 * with EINTR, and its handler has run once by then. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum { CALLS = 5 };

static volatile unsigned handled[CALLS], waiting[CALLS];
static __thread int own;

static void on_signal(int sig)
{
    (void)sig;
    __atomic_add_fetch(&handled[own], 1, __ATOMIC_RELEASE);
}

static long wait_once(int how, int epoll, sigset_t *none)
{
    struct epoll_event event;
    switch (how) {
    case 0:
        return epoll_pwait(epoll, &event, 1, -1, none);
    case 1:
        return ppoll(NULL, 0, NULL, none);
    case 2:
        return pselect(0, NULL, NULL, NULL, NULL, none);
    case 3:
        return sigsuspend(none);
    default:
        return epoll_pwait(epoll, &event, 1, 100000000, none);
    }
}

static void *wait_on(void *arg)
{
    sigset_t none;
    sigemptyset(&none);
    own = (int)(intptr_t)arg;
    int epoll = SYS(epoll_create1(0));
    for (;;) {
        waiting[own]++;
        long got = wait_once(own, epoll, &none);
        CHECK(got == -1 && errno == EINTR, "call %d: %ld, %s", own, got, strerror(errno));
        CHECK_EQ(handled[own], waiting[own], "runs of the handler");
    }
    return NULL;
}

int main(void)
{
    guest_begin();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    struct sigaction act = {.sa_handler = on_signal};
    SYS(sigaction(SIGUSR1, &act, NULL));
    pthread_t ids[CALLS];
    for (int n = 0; n < CALLS; n++)
        CHECK_EQ(pthread_create(&ids[n], NULL, wait_on, (void *)(intptr_t)n), 0, "pthread_create");
    guest_ready();
    do
        for (int i = 0; i < 200; i++)
            for (int n = 0; n < CALLS; n++)
                if (waiting[n] == handled[n] + 1) {
                    unsigned before = handled[n];
                    pthread_kill(ids[n], SIGUSR1);
                    while (__atomic_load_n(&handled[n], __ATOMIC_ACQUIRE) == before)
                        sched_yield();
                }
    while (guest_running());
    guest_success();
}
