/* The rseq registration of glibc: the kernel keeps cpu_id up to date after a move. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <sys/rseq.h>

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

static volatile int ending;

static void check_rseq(void)
{
    volatile struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    for (int i = 0; i < 100; i++) {
        unsigned before, kernel, after;
        before = area->cpu_id;
        SYS(syscall(SYS_getcpu, &kernel, NULL, NULL));
        after = area->cpu_id;
        CHECK((int)after >= 0, "rseq cpu_id is %d: not registered", (int)after);
        if (before == after && before == kernel)
            return;
    }
    fail("rseq cpu_id never equals getcpu");
}

/* Pinned to each processor in turn, so that a stale cpu_id is seen. */
static void check_everywhere(void)
{
    cpu_set_t all, one;
    SYS(sched_getaffinity(0, sizeof(all), &all));
    for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE && seen < 4; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            SYS(sched_setaffinity(0, sizeof(one), &one));
            check_rseq();
            seen++;
        }
    SYS(sched_setaffinity(0, sizeof(all), &all));
}

static void *thread(void *unused)
{
    while (!ending) {
        check_everywhere();
        usleep(1000);
    }
    return unused;
}

int main(void)
{
    guest_begin();
    if (!&__rseq_size || __rseq_size == 0)
        skip("this C library does not register rseq");
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, thread, NULL), 0, "pthread_create");
    guest_ready();
    do
        check_everywhere();
    while (guest_running());
    /* Registered already: the kernel says EBUSY to the same area, EINVAL to another. */
    void *area = (char *)__builtin_thread_pointer() + __rseq_offset;
    long result = syscall(SYS_rseq, area, 32, 0, RSEQ_SIG);
    CHECK(result == -1 && errno == EBUSY, "a second registration gave %ld, %s", result, strerror(errno));
    ending = 1;
    pthread_join(id, NULL);
    guest_success();
}
