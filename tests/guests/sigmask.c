/* Signal masks, different in each thread; a blocked signal stays out, an open one comes in. */
#include "guest.h"
#include <pthread.h>

static volatile int ending;
static volatile sig_atomic_t seen;

static void on_signal(int sig)
{
    seen = sig;
}

static void check_mask(const sigset_t *want)
{
    sigset_t now;
    CHECK_EQ(pthread_sigmask(SIG_BLOCK, NULL, &now), 0, "pthread_sigmask");
    for (int sig = 1; sig <= 64; sig++)
        if (sig != SIGKILL && sig != SIGSTOP && sig != 32 && sig != 33)
            CHECK_EQ(sigismember(&now, sig), sigismember(want, sig), strsignal(sig));
}

static void *thread(void *arg)
{
    sigset_t mask;
    sigfillset(&mask);
    sigdelset(&mask, SIGUSR1 + (int)(uintptr_t)arg);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    pthread_sigmask(SIG_BLOCK, NULL, &mask);
    while (!ending) {
        check_mask(&mask);
        usleep(1000);
    }
    return NULL;
}

int main(void)
{
    guest_begin();
    signal(SIGUSR2, on_signal);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGRTMIN + 3);
    sigaddset(&mask, SIGRTMAX);
    CHECK_EQ(pthread_sigmask(SIG_SETMASK, &mask, NULL), 0, "pthread_sigmask");
    pthread_t ids[4];
    for (uintptr_t i = 0; i < COUNT(ids); i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, thread, (void *)i), 0, "pthread_create");
    guest_ready();
    do {
        check_mask(&mask);
        seen = 0;
        pthread_kill(pthread_self(), SIGUSR2);
        CHECK_EQ(seen, SIGUSR2, "the signal that is not blocked");
    } while (guest_running());
    ending = 1;
    for (size_t i = 0; i < COUNT(ids); i++)
        pthread_join(ids[i], NULL);
    guest_success();
}
