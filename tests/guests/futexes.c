/* Locks under contention: mutexes, condition variables, priority inheritance, read-write
 * locks, private and shared futexes, by eight threads that wait most of the time. */
#include "guest.h"
#include <pthread.h>

#define THREADS 8
static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER, inherit, turn_lock;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t readers = PTHREAD_RWLOCK_INITIALIZER;
static uint64_t plain_count, inherit_count, written[2], turns;
static uint64_t done[THREADS];
/* Rounds that every thread makes; set by the last thread of a round, for all alike. */
static volatile uint64_t limit = UINT64_MAX;

static void *worker(void *arg)
{
    uint64_t me = (uintptr_t)arg;
    for (uint64_t round = 0; round < limit; round++) {
        pthread_mutex_lock(&plain);
        plain_count++;
        pthread_mutex_unlock(&plain);
        CHECK_EQ(pthread_mutex_lock(&inherit), 0, "lock of a PI mutex");
        inherit_count++;
        CHECK_EQ(pthread_mutex_unlock(&inherit), 0, "unlock of a PI mutex");
        if (me == 0) {
            pthread_rwlock_wrlock(&readers);
            written[0]++;
            usleep(200);
            written[1]++;
            pthread_rwlock_unlock(&readers);
        } else {
            pthread_rwlock_rdlock(&readers);
            CHECK(written[0] == written[1], "a reader saw a half-done write");
            pthread_rwlock_unlock(&readers);
        }
        pthread_mutex_lock(&turn_lock);
        while (turns % THREADS != me)
            CHECK_EQ(pthread_cond_wait(&turn_changed, &turn_lock), 0, "pthread_cond_wait");
        /* The others are at most one round ahead, in their wait. */
        if (me == THREADS - 1 && limit == UINT64_MAX && guest_stopping())
            limit = round + 2;
        turns++;
        pthread_cond_broadcast(&turn_changed);
        pthread_mutex_unlock(&turn_lock);
        done[me]++;
    }
    return NULL;
}

int main(void)
{
    guest_begin();
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
    CHECK_EQ(pthread_mutex_init(&inherit, &attr), 0, "a PI mutex");
    pthread_t ids[THREADS];
    guest_ready();
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, worker, (void *)i), 0, "pthread_create");
    uint64_t last = 0;
    unsigned still = 0;
    while (guest_running()) {
        uint64_t now = *(volatile uint64_t *)&turns;
        still = now == last ? still + 1 : 0;
        CHECK(still < 2500, "no thread came forward in 2500 checks: a wake-up was lost");
        last = now;
    }
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_join(ids[i], NULL);
    uint64_t sum = 0;
    for (int i = 0; i < THREADS; i++)
        sum += done[i];
    CHECK_EQ(plain_count, sum, "the count under the mutex");
    CHECK_EQ(inherit_count, sum, "the count under the PI mutex");
    guest_success();
}
