/* CPU affinity of each thread and each process: one CPU, another, all. */
#include "each.h"
#include <sched.h>

static cpu_set_t all;
static int last;

static cpu_set_t wanted(int n)
{
    cpu_set_t set = all;
    if (n < 2) {
        CPU_ZERO(&set);
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &all) && (n == 0 || cpu == last)) {
                CPU_SET(cpu, &set);
                break;
            }
    } else if (n == 3 && CPU_COUNT(&all) > 1)
        CPU_CLR(last, &set);
    return set;
}

static void setup(int n)
{
    cpu_set_t set = wanted(n);
    SYS(sched_setaffinity(0, sizeof(set), &set));
}

static void check(int n)
{
    cpu_set_t now, want = wanted(n);
    CPU_ZERO(&now);
    SYS(sched_getaffinity(0, sizeof(now), &now));
    CHECK(CPU_EQUAL(&now, &want), "affinity %d: %d CPUs, should be %d", n, CPU_COUNT(&now), CPU_COUNT(&want));
    CHECK(CPU_ISSET(sched_getcpu(), &want), "it runs on CPU %d", sched_getcpu());
}

int main(void)
{
    guest_begin();
    SYS(sched_getaffinity(0, sizeof(all), &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all))
            last = cpu;
    each_hold(4, 1, setup, check);
    guest_success();
}
