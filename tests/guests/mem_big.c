/* 64 MiB of random pages, verified and rewritten without a pause by four threads. */
#include "guest.h"
#include <pthread.h>

#define THREADS 4
#define PART (16UL << 20)

static char *memory;
static volatile int ending;

static void *checker(void *arg)
{
    uint64_t seed = (uintptr_t)arg * 1000000007ULL;
    char *part = memory + (uintptr_t)arg * PART;
    uint64_t turn[PART / (64 * PAGE)] = {0};
    for (size_t i = 0; !ending; i = (i + 1) % COUNT(turn)) {
        char *at = part + i * 64 * PAGE;
        guest_verify(at, 64 * PAGE, seed + i * 77777 + turn[i], "big memory");
        if (i % 2)
            guest_fill(at, 64 * PAGE, seed + i * 77777 + ++turn[i]);
        struct timespec nap = {.tv_nsec = 500000};
        CHECK(nanosleep(&nap, NULL) == 0, "nanosleep: %s", strerror(errno));
    }
    for (size_t i = 0; i < COUNT(turn); i++)
        guest_verify(part + i * 64 * PAGE, 64 * PAGE, seed + i * 77777 + turn[i], "big memory");
    return NULL;
}

int main(void)
{
    guest_begin();
    memory = mmap(NULL, THREADS * PART, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
    for (uint64_t t = 0; t < THREADS; t++)
        for (size_t i = 0; i < PART / (64 * PAGE); i++)
            guest_fill(memory + t * PART + i * 64 * PAGE, 64 * PAGE, t * 1000000007ULL + i * 77777);
    pthread_t ids[THREADS];
    for (uintptr_t t = 0; t < THREADS; t++)
        CHECK_EQ(pthread_create(&ids[t], NULL, checker, (void *)t), 0, "pthread_create");
    guest_ready();
    while (guest_running())
        ;
    ending = 1;
    for (int t = 0; t < THREADS; t++)
        pthread_join(ids[t], NULL);
    guest_success();
}
