/* CLONE_CHILD_CLEARTID: threads that end after a move clear their word and wake the joiner. */
#include "guest.h"
#include <pthread.h>
#include <semaphore.h>

#define WAITING 8
static sem_t go[WAITING];

static void *waiter(void *arg)
{
    sem_t *own = arg;
    while (sem_wait(own) == -1)
        CHECK(0, "sem_wait: %s", strerror(errno));
    return arg;
}

static void start(pthread_t *id, sem_t *own)
{
    SYS(sem_init(own, 0, 0));
    CHECK_EQ(pthread_create(id, NULL, waiter, own), 0, "pthread_create");
}

int main(void)
{
    guest_begin();
    pthread_t ids[WAITING];
    for (int i = 0; i < WAITING; i++)
        start(&ids[i], &go[i]);
    guest_ready();
    /* One thread after the other ends and is started again, so that each is old or new. */
    int turn = 0;
    do {
        int i = turn++ / 10 % WAITING;
        if (turn % 10)
            continue;
        void *result;
        SYS(sem_post(&go[i]));
        CHECK_EQ(pthread_join(ids[i], &result), 0, "pthread_join");
        CHECK(result == &go[i], "the result of thread %d", i);
        start(&ids[i], &go[i]);
    } while (guest_running());
    for (int i = 0; i < WAITING; i++) {
        SYS(sem_post(&go[i]));
        CHECK_EQ(pthread_join(ids[i], NULL), 0, "pthread_join");
    }
    guest_success();
}
