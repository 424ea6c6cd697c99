/* A robust mutex: its owner ends after the move, the next one is told EOWNERDEAD. */
#include "guest.h"
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>

static pthread_mutex_t lock;
static sem_t held, go;

static void *owner(void *unused)
{
    CHECK_EQ(pthread_mutex_lock(&lock), 0, "lock");
    SYS(sem_post(&held));
    SYS(sem_wait(&go));
    return unused; /* ends with the mutex locked */
}

int main(void)
{
    guest_begin();
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    CHECK_EQ(pthread_mutex_init(&lock, &attr), 0, "pthread_mutex_init");
    SYS(sem_init(&held, 0, 0));
    SYS(sem_init(&go, 0, 0));
    void *head, *head_now;
    size_t size;
    SYS(syscall(SYS_get_robust_list, 0, &head, &size));
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, owner, NULL), 0, "pthread_create");
    SYS(sem_wait(&held));
    guest_ready();
    do {
        CHECK_EQ(pthread_mutex_trylock(&lock), EBUSY, "trylock while the owner lives");
        SYS(syscall(SYS_get_robust_list, 0, &head_now, &size));
        CHECK(head == head_now, "the robust list was %p, is %p", head, head_now);
    } while (guest_running());
    SYS(sem_post(&go));
    pthread_join(id, NULL);
    CHECK_EQ(pthread_mutex_lock(&lock), EOWNERDEAD, "lock after the owner's end");
    CHECK_EQ(pthread_mutex_consistent(&lock), 0, "pthread_mutex_consistent");
    CHECK_EQ(pthread_mutex_unlock(&lock), 0, "unlock");
    guest_success();
}
