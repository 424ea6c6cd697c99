/* MAP_SHARED | MAP_ANONYMOUS between a parent and its children: a counter under a process-shared
 * mutex, a condition that sleepers wait for, and a part that only one child still maps. */
#include "crew.h"
#include <pthread.h>

enum { CHILDREN = 3, ROUNDS = 50 };
#define SIZE (64 * PAGE)

struct common {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    long count, turn, arrived;
    char rest[];
};

static struct common *common;

static void lock(void)
{
    CHECK_EQ(pthread_mutex_lock(&common->mutex), 0, "lock");
}

static void unlock(void)
{
    CHECK_EQ(pthread_mutex_unlock(&common->mutex), 0, "unlock");
}

static long serve(int n, char question)
{
    if (question == 'c')
        for (int i = 0; i < ROUNDS; i++) {
            lock();
            common->count++;
            unlock();
        }
    if (question == 'w') {
        lock();
        long turn = common->turn;
        common->arrived++;
        while (common->turn == turn)
            CHECK_EQ(pthread_cond_wait(&common->changed, &common->mutex), 0, "wait");
        unlock();
    }
    /* Each child changes its own byte of each page. */
    for (size_t at = PAGE; at < SIZE; at += PAGE)
        ((char *)common)[at + (size_t)n]++;
    return common->count;
}

int main(void)
{
    guest_begin();
    common = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(common != MAP_FAILED, "mmap: %s", strerror(errno));
    pthread_mutexattr_t shared_mutex;
    pthread_condattr_t shared_cond;
    pthread_mutexattr_init(&shared_mutex);
    pthread_mutexattr_setpshared(&shared_mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&common->mutex, &shared_mutex);
    pthread_condattr_init(&shared_cond);
    pthread_condattr_setpshared(&shared_cond, PTHREAD_PROCESS_SHARED);
    pthread_cond_init(&common->changed, &shared_cond);
    struct mate mates[CHILDREN];
    for (int n = 0; n < CHILDREN; n++)
        mates[n] = crew_start(n, serve);
    /* The parent keeps the first half only. */
    SYS(munmap((char *)common + SIZE / 2, SIZE / 2));
    guest_ready();
    long count = 0, rounds = 0;
    do {
        for (int n = 0; n < CHILDREN; n++)
            crew_say(&mates[n], 'c');
        for (int n = 0; n < CHILDREN; n++)
            crew_hear(&mates[n]);
        count += CHILDREN * ROUNDS;
        CHECK_EQ(common->count, count, "what all have counted");
        for (int n = 0; n < CHILDREN; n++)
            crew_say(&mates[n], 'w');
        for (int asleep = 0; !asleep; usleep(500)) {
            lock();
            asleep = common->arrived == CHILDREN;
            unlock();
        }
        guest_running();
        lock();
        common->arrived = 0;
        common->turn++;
        pthread_cond_broadcast(&common->changed);
        unlock();
        for (int n = 0; n < CHILDREN; n++)
            crew_hear(&mates[n]);
        rounds += 2;
        for (size_t at = PAGE; at < SIZE / 2; at += PAGE)
            for (int n = 0; n < CHILDREN; n++)
                CHECK_EQ(((char *)common)[at + (size_t)n], (char)rounds, "a byte of a child");
    } while (guest_running());
    for (int n = 0; n < CHILDREN; n++)
        crew_end(&mates[n]);
    guest_success();
}
