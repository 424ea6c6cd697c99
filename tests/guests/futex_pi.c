/* Mutexes with priority inheritance, nearly always contended: threads and a child process that
 * sleep while they hold them, locks that time out, owners that end without letting go. */
#include "guest.h"
#include <pthread.h>
#include <sys/wait.h>

#define THREADS 4
struct shared {
    pthread_mutex_t lock;
    volatile uint64_t before, after;
    volatile int stop;
};
static struct shared *shared, private;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER, left_lock;
static volatile int done;

static void make(pthread_mutex_t *lock, int robust, int pshared)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutexattr_setrobust(&attr, robust ? PTHREAD_MUTEX_ROBUST : PTHREAD_MUTEX_STALLED);
    pthread_mutexattr_setpshared(&attr, pshared);
    CHECK_EQ(pthread_mutex_init(lock, &attr), 0, "pthread_mutex_init");
}

/* Alone inside, for a while that others want in. */
static void inside(struct shared *it)
{
    CHECK_EQ(pthread_mutex_lock(&it->lock), 0, "lock of a PI mutex");
    CHECK(it->before == it->after, "two are inside at once");
    it->before++;
    usleep(300);
    it->after++;
    CHECK_EQ(pthread_mutex_lock(&it->lock), EDEADLK, "lock by its owner");
    CHECK_EQ(pthread_mutex_unlock(&it->lock), 0, "unlock of a PI mutex");
}

static void *worker(void *arg)
{
    while (!done)
        inside(arg);
    return NULL;
}

static void *holder(void *unused)
{
    CHECK_EQ(pthread_mutex_lock(&held), 0, "lock of the held mutex");
    while (!done)
        usleep(1000);
    CHECK_EQ(pthread_mutex_unlock(&held), 0, "unlock of the held mutex");
    return unused;
}

static void *waiter(void *unused)
{
    int got = pthread_mutex_lock(&left_lock);
    CHECK(got == EOWNERDEAD, "lock of a mutex whose owner ends: %d", got);
    CHECK_EQ(pthread_mutex_consistent(&left_lock), 0, "pthread_mutex_consistent");
    CHECK_EQ(pthread_mutex_unlock(&left_lock), 0, "unlock of an inherited mutex");
    return unused;
}

static void *leaver(void *arg)
{
    pthread_t *id = arg;
    CHECK_EQ(pthread_mutex_lock(&left_lock), 0, "lock of a robust PI mutex");
    CHECK_EQ(pthread_create(id, NULL, waiter, NULL), 0, "pthread_create");
    usleep(500);
    return NULL;
}

static void leave(void)
{
    pthread_t first, second;
    CHECK_EQ(pthread_create(&first, NULL, leaver, &second), 0, "pthread_create");
    pthread_join(first, NULL);
    pthread_join(second, NULL);
}

static void time_out(int clock)
{
    struct timespec until, now;
    clock_gettime(clock, &until);
    until.tv_nsec += 2000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    CHECK_EQ(pthread_mutex_clocklock(&held, clock, &until), ETIMEDOUT, "a lock with a timeout");
    clock_gettime(clock, &now);
    CHECK(now.tv_sec > until.tv_sec ||
              (now.tv_sec == until.tv_sec && now.tv_nsec >= until.tv_nsec),
          "a lock timed out early");
    CHECK_EQ(pthread_mutex_trylock(&held), EBUSY, "trylock");
    CHECK_EQ(pthread_mutex_unlock(&held), EPERM, "unlock by another");
}

int main(void)
{
    guest_begin();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED, "mmap");
    make(&shared->lock, 0, PTHREAD_PROCESS_SHARED);
    make(&private.lock, 0, PTHREAD_PROCESS_PRIVATE);
    make(&held, 0, PTHREAD_PROCESS_PRIVATE);
    make(&left_lock, 1, PTHREAD_PROCESS_PRIVATE);
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child == 0) {
        while (!shared->stop)
            inside(shared);
        _exit(0);
    }
    pthread_t ids[THREADS + 1];
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, worker, i % 2 ? &private : shared), 0, "create");
    CHECK_EQ(pthread_create(&ids[THREADS], NULL, holder, NULL), 0, "pthread_create");
    /* Until the holder has it. */
    int busy;
    while ((busy = pthread_mutex_trylock(&held)) == 0) {
        CHECK_EQ(pthread_mutex_unlock(&held), 0, "unlock");
        usleep(100);
    }
    CHECK_EQ(busy, EBUSY, "trylock of the held mutex");
    guest_ready();
    do {
        uint64_t entered = shared->after, own = private.after;
        leave();
        time_out(CLOCK_REALTIME);
        time_out(CLOCK_MONOTONIC);
        for (unsigned i = 0; shared->after == entered || private.after == own; i++) {
            CHECK(i < 20000, "nobody got a lock in 20000 looks: a wake-up was lost");
            usleep(500);
        }
    } while (guest_running());
    done = shared->stop = 1;
    for (int i = 0; i <= THREADS; i++)
        pthread_join(ids[i], NULL);
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child, "waitpid");
    CHECK_EQ(status, 0, "the child's status");
    guest_success();
}
