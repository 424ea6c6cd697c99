/*
 * Processes that clone(2) has made with a part of their parent's state in common, and a witness
 * made by fork(2), which has none of it.
 *
 * The parent and a partner change what they share in turns, with numbers that grow, and each sees
 * what the other one has done. They speak through words that all three map.
 */
#ifndef SHARED_H
#define SHARED_H
#include "guest.h"
#include <sched.h>
#include <sys/wait.h>

struct shared {
    /* Turn N has begun; the partner and the witness have done it. */
    volatile long turn, partner, witness;
    volatile int over;
};

static struct shared *shared;

static inline void shared_begin(void)
{
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap: %s", strerror(errno));
}

static inline void shared_nap(void)
{
    struct timespec nap = {.tv_nsec = 200000};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
}

/* Does something for each turn, until all is over; never returns. */
__attribute__((noreturn)) static inline void shared_follow(volatile long *done, void (*act)(long))
{
    while (!shared->over) {
        long turn = shared->turn;
        if (*done == turn) {
            shared_nap();
            continue;
        }
        act(turn);
        *done = turn;
    }
    _exit(0);
}

struct shared_start {
    void (*act)(long);
};

static inline int shared_entry(void *start)
{
    shared_follow(&shared->partner, ((struct shared_start *)start)->act);
}

/* A partner that has FLAGS of clone(2) in common with its parent. */
static inline pid_t shared_partner(int flags, void (*act)(long))
{
    static struct shared_start start;
    enum { STACK = 256 << 10 };
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
    start.act = act;
    return SYS(clone(shared_entry, stack + STACK, flags | SIGCHLD, &start));
}

static inline pid_t shared_witness(void (*act)(long))
{
    pid_t pid = SYS(fork());
    if (pid == 0)
        shared_follow(&shared->witness, act);
    return pid;
}

/* Waits until both have done turn N. */
static inline void shared_turn(long turn)
{
    shared->turn = turn;
    while (shared->partner != turn || shared->witness != turn) {
        CHECK_EQ(SYS(waitpid(-1, NULL, WNOHANG)), 0, "a child ended early");
        shared_nap();
    }
}

/* One turn after the other, for as long as the guest runs. Gives the number of the next one. */
static inline long shared_turns(void (*turn)(long))
{
    long n = 1;
    turn(n++);
    guest_ready();
    do
        turn(n++);
    while (guest_running());
    return n;
}

static inline void shared_reap(pid_t pid)
{
    int status;
    CHECK_EQ(SYS(waitpid(pid, &status, 0)), pid, "the child");
    CHECK_EQ(status, 0, "its end");
}

static inline void shared_end(pid_t partner, pid_t witness)
{
    shared->over = 1;
    shared_reap(partner);
    shared_reap(witness);
}
#endif
