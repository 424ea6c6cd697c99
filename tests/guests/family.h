/*
 * Children that check themselves: each one is set up, then checks its own state until its parent
 * says that it is over. What it says is in memory that all share.
 */
#ifndef FAMILY_H
#define FAMILY_H
#include "guest.h"
#include <sys/wait.h>

enum { FAMILY_MOST = 8 };

struct family {
    volatile int over;
    volatile long beats[FAMILY_MOST];
    pid_t pids[FAMILY_MOST];
    int count;
};

static struct family *family;

static inline void family_begin(void)
{
    family = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(family != MAP_FAILED, "mmap: %s", strerror(errno));
}

/* A child that calls SETUP once and CHECK again and again, each with its number. */
static inline pid_t family_child(void (*setup)(int), void (*check)(int))
{
    int n = family->count++;
    pid_t pid = SYS(fork());
    if (pid == 0) {
        setup(n);
        while (!family->over) {
            check(n);
            family->beats[n]++;
            struct timespec nap = {.tv_nsec = 500000};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        }
        _exit(0);
    }
    family->pids[n] = pid;
    while (family->beats[n] == 0)
        CHECK_EQ(SYS(waitpid(pid, NULL, WNOHANG)), 0, "a child ended early");
    return pid;
}

/* Waits until each child has checked itself once more. */
static inline void family_turn(void)
{
    for (int n = 0; n < family->count; n++) {
        int status = 0;
        for (long seen = family->beats[n]; family->beats[n] <= seen + 1;) {
            CHECK_EQ(SYS(waitpid(family->pids[n], &status, WNOHANG)), 0, "a child ended early");
            struct timespec nap = {.tv_nsec = 200000};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        }
    }
}

static inline void family_end(void)
{
    family->over = 1;
    for (int n = 0; n < family->count; n++) {
        int status;
        CHECK_EQ(SYS(waitpid(family->pids[n], &status, 0)), family->pids[n], "a child");
        CHECK_EQ(status, 0, "the end of a child");
    }
}
#endif
