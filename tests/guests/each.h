/*
 * Threads and child processes that each hold a state of their own: holder N sets it up once and
 * checks it again and again, as child N and as thread N.
 */
#ifndef EACH_H
#define EACH_H
#include "family.h"
#include <pthread.h>

static struct {
    void (*setup)(int), (*check)(int);
    volatile int over;
    volatile long beats[FAMILY_MOST];
} each;

static void *each_thread(void *number)
{
    int n = (int)(intptr_t)number;
    each.setup(n);
    while (!each.over) {
        each.check(n);
        each.beats[n]++;
        struct timespec nap = {.tv_nsec = 500000};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
    }
    return NULL;
}

static inline void each_turn(int threads)
{
    for (int n = 0; n < threads; n++)
        for (long seen = each.beats[n]; each.beats[n] <= seen + 1;) {
            struct timespec nap = {.tv_nsec = 200000};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
        }
    family_turn();
}

/* Runs COUNT holders as children, and as threads if these have such a state of their own, until the
 * guest is to end. */
static inline void each_hold(int count, int as_threads, void (*setup)(int), void (*check)(int))
{
    pthread_t threads[FAMILY_MOST];
    CHECK(count <= FAMILY_MOST, "too many holders");
    each.setup = setup;
    each.check = check;
    family_begin();
    for (int n = 0; n < count; n++)
        family_child(setup, check);
    int of_threads = as_threads ? count : 0;
    for (int n = 0; n < of_threads; n++)
        CHECK(!pthread_create(&threads[n], NULL, each_thread, (void *)(intptr_t)n), "thread");
    each_turn(of_threads);
    guest_ready();
    do
        each_turn(of_threads);
    while (guest_running());
    each_turn(of_threads);
    each.over = 1;
    for (int n = 0; n < of_threads; n++)
        pthread_join(threads[n], NULL);
    family_end();
}

static inline int has_capability(int number)
{
    char text[64];
    guest_proc_status("CapEff", text, sizeof(text));
    return strtoull(text, NULL, 16) >> number & 1;
}

/* Root, with all that it can do to scheduling (CAP_SYS_NICE). */
static inline int is_privileged(void)
{
    return geteuid() == 0 && has_capability(23);
}
#endif
