/* Nice values, of each thread and each process, whatever their policies. */
#include "each.h"
#include <sched.h>
#include <sys/resource.h>

static const int NICE[] = {0, 1, 7, 19, -3, -20};

/* Every second one has another policy, for whose end its nice value waits. */
static void setup(int n)
{
    SYS(setpriority(PRIO_PROCESS, 0, NICE[n]));
    if (n % 2)
        SYS(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}));
}

static void check(int n)
{
    errno = 0;
    int nice = getpriority(PRIO_PROCESS, 0);
    CHECK(!errno, "getpriority: %s", strerror(errno));
    CHECK_EQ(nice, NICE[n], "nice");
}

int main(void)
{
    guest_begin();
    each_hold(is_privileged() ? COUNT(NICE) : 4, 1, setup, check);
    guest_success();
}
