/* O_ASYNC with owners of all kinds: the process, a thread of it, a child, a group; with a signal
 * of its own and with SIGIO. */
#include "guest.h"
#include <pthread.h>
#include <sys/wait.h>

#ifndef F_OWNER_TID
#define F_OWNER_TID 0
#define F_OWNER_PID 1
#define F_OWNER_PGRP 2
#endif

enum { KINDS = 4, FIRST = 50 };

static int writers[KINDS];
/* How often a signal came for each of the pipes; of the child in shared memory. */
static volatile int *told;
static volatile pid_t thread_tid;

static void on_ready(int sig, siginfo_t *info, void *context)
{
    (void)context;
    int n = info->si_fd - FIRST;
    if (n < 0 || n >= KINDS)
        fail("signal %d of descriptor %d, code %d", sig, info->si_fd, info->si_code);
    if (n == 1 && gettid() != thread_tid)
        fail("a signal for thread %d came to %d", thread_tid, gettid());
    __atomic_add_fetch(&told[n], 1, __ATOMIC_SEQ_CST);
}

__attribute__((noreturn)) static void *thread(void *arg)
{
    (void)arg;
    thread_tid = gettid();
    for (;;)
        pause();
}

static void own(int n, int type, pid_t pid, int sig)
{
    int ends[2];
    struct f_owner_ex owner = {.type = type, .pid = pid};
    SYS(pipe(ends));
    SYS(dup2(ends[0], FIRST + n));
    SYS(close(ends[0]));
    writers[n] = ends[1];
    SYS(fcntl(FIRST + n, F_SETOWN_EX, &owner));
    SYS(fcntl(FIRST + n, F_SETSIG, sig));
    SYS(fcntl(FIRST + n, F_SETFL, SYS(fcntl(FIRST + n, F_GETFL)) | O_ASYNC | O_NONBLOCK));
}

static void check_owner(int n, int type, pid_t pid, int sig)
{
    struct f_owner_ex owner;
    SYS(fcntl(FIRST + n, F_GETOWN_EX, &owner));
    CHECK_EQ(owner.type, type, "kind of owner");
    CHECK_EQ(owner.pid, pid, "owner");
    CHECK_EQ(SYS(fcntl(FIRST + n, F_GETSIG)), sig, "signal");
    CHECK_EQ(SYS(fcntl(FIRST + n, F_GETFL)) & (O_ASYNC | O_NONBLOCK), O_ASYNC | O_NONBLOCK, "flags");
}

int main(void)
{
    guest_begin();
    told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(told != MAP_FAILED, "mmap: %s", strerror(errno));
    struct sigaction act = {.sa_sigaction = on_ready, .sa_flags = SA_SIGINFO | SA_RESTART};
    int sig = SIGRTMIN + 2;
    SYS(sigaction(sig, &act, NULL));
    pthread_t made;
    CHECK_EQ(pthread_create(&made, NULL, thread, NULL), 0, "pthread_create");
    while (!thread_tid)
        usleep(1000);
    pid_t child = SYS(fork());
    if (child == 0) {
        SYS(setpgid(0, 0));
        for (;;)
            pause();
    }
    while (getpgid(child) != child)
        usleep(1000);
    own(0, F_OWNER_PID, getpid(), sig);
    own(1, F_OWNER_TID, thread_tid, sig);
    own(2, F_OWNER_PID, child, sig);
    own(3, F_OWNER_PGRP, child, sig);
    guest_ready();
    int turns = 0;
    do {
        check_owner(0, F_OWNER_PID, getpid(), sig);
        check_owner(1, F_OWNER_TID, thread_tid, sig);
        check_owner(2, F_OWNER_PID, child, sig);
        check_owner(3, F_OWNER_PGRP, child, sig);
        turns++;
        for (int n = 0; n < KINDS; n++) {
            char byte;
            SYS(write(writers[n], "x", 1));
            while (told[n] < turns)
                usleep(100);
            CHECK_EQ(told[n], turns, "signals");
            SYS(read(FIRST + n, &byte, 1));
        }
    } while (guest_running());
    SYS(kill(child, SIGKILL));
    SYS(waitpid(child, NULL, 0));
    guest_success();
}
