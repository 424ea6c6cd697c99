/* Process and thread numbers, and signals sent by number. */
#include "guest.h"
#include <pthread.h>

static volatile int ending;
static volatile sig_atomic_t process_signals;
static _Thread_local volatile sig_atomic_t thread_signals;

static void on_usr1(int sig)
{
    process_signals += sig == SIGUSR1;
}

static void on_usr2(int sig)
{
    thread_signals += sig == SIGUSR2;
}

static void *thread(void *unused)
{
    pid_t tid = gettid(), pid = getpid();
    char path[64], link[64], want[64];
    while (!ending) {
        CHECK_EQ(gettid(), tid, "gettid of a thread");
        int before = thread_signals;
        SYS(tgkill(pid, tid, SIGUSR2));
        CHECK_EQ(thread_signals, before + 1, "signals that the thread sent to itself");
        snprintf(path, sizeof(path), "/proc/%d/task/%d/comm", pid, tid);
        CHECK(access(path, R_OK) == 0, "%s: %s", path, strerror(errno));
        link[SYS(readlink("/proc/thread-self", link, sizeof(link) - 1))] = 0;
        snprintf(want, sizeof(want), "%d/task/%d", pid, tid);
        CHECK(!strcmp(link, want), "/proc/thread-self is %s, wanted %s", link, want);
        usleep(1000);
    }
    return unused;
}

int main(void)
{
    guest_begin();
    signal(SIGUSR1, on_usr1);
    signal(SIGUSR2, on_usr2);
    pid_t pid = getpid(), parent = getppid(), group = getpgrp(), session = getsid(0);
    pid_t tid = gettid();
    pthread_t ids[6];
    for (size_t i = 0; i < COUNT(ids); i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, thread, NULL), 0, "pthread_create");
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    guest_ready();
    do {
        CHECK_EQ(syscall(SYS_getpid), pid, "getpid");
        CHECK_EQ(gettid(), tid, "gettid");
        CHECK_EQ(getppid(), parent, "getppid");
        CHECK_EQ(getpgrp(), group, "getpgrp");
        CHECK_EQ(getpgid(pid), group, "getpgid");
        CHECK_EQ(getsid(0), session, "getsid");
        char link[64];
        link[SYS(readlink("/proc/self", link, sizeof(link) - 1))] = 0;
        CHECK_EQ(atoi(link), pid, "/proc/self");
        int before = process_signals;
        SYS(kill(pid, SIGUSR1));
        for (int i = 0; i < 5000 && process_signals == before; i++)
            usleep(1000);
        CHECK_EQ(process_signals, before + 1, "signals sent to getpid()");
        pthread_sigmask(SIG_BLOCK, &usr1, NULL);
        CHECK_EQ(tgkill(pid, tid + 100000, 0), -1, "tgkill of a thread that is not there");
        pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    } while (guest_running());
    ending = 1;
    for (size_t i = 0; i < COUNT(ids); i++)
        pthread_join(ids[i], NULL);
    guest_success();
}
