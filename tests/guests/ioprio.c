/* I/O priorities (ioprio_set(2)) of each thread and each process: best effort, idle, real time. */
#include "each.h"

enum { NONE, REAL_TIME, BEST_EFFORT, IDLE, SHIFT = 13, WHO_PROCESS = 1 };

static const int PRIORITIES[] = {
    BEST_EFFORT << SHIFT,     BEST_EFFORT << SHIFT | 7, IDLE << SHIFT, NONE,
    BEST_EFFORT << SHIFT | 3, REAL_TIME << SHIFT | 2,
};

static void setup(int n)
{
    SYS(syscall(SYS_ioprio_set, WHO_PROCESS, 0, PRIORITIES[n]));
}

static void check(int n)
{
    CHECK_EQ(SYS(syscall(SYS_ioprio_get, WHO_PROCESS, 0)), PRIORITIES[n], "I/O priority");
}

int main(void)
{
    guest_begin();
    each_hold(is_privileged() ? COUNT(PRIORITIES) : 5, 1, setup, check);
    guest_success();
}
