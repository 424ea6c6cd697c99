/* Scheduling policies of threads and processes, with reset-on-fork, which a later fork obeys. */
#include "each.h"
#include <sched.h>

struct attr {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

enum { OTHER, FIFO, RR, BATCH, IDLE = 5, DEADLINE, RESET = 1, MS = 1000000 };

/* The first ones are allowed to anybody. */
static const struct attr ATTRS[] = {
    {.policy = BATCH, .nice = 3},
    {.policy = IDLE},
    {.policy = OTHER, .flags = RESET},
    {.policy = BATCH, .flags = RESET, .nice = 7},
    {.policy = FIFO, .priority = 11},
    {.policy = RR, .priority = 12, .flags = RESET},
    {.policy = DEADLINE, .runtime = 2 * MS, .deadline = 20 * MS, .period = 40 * MS},
};

static void setup(int n)
{
    struct attr attr = ATTRS[n];
    attr.size = sizeof(attr);
    SYS(syscall(SYS_sched_setattr, 0, &attr, 0));
}

static void check(int n)
{
    struct attr now, want = ATTRS[n];
    SYS(syscall(SYS_sched_getattr, 0, &now, sizeof(now), 0));
    CHECK_EQ(now.policy, want.policy, "policy");
    CHECK_EQ(now.flags & RESET, want.flags, "reset-on-fork");
    CHECK_EQ(now.nice, want.nice, "nice");
    CHECK_EQ(now.priority, want.priority, "priority");
    if (want.policy == DEADLINE) {
        CHECK_EQ(now.runtime, want.runtime, "runtime");
        CHECK_EQ(now.deadline, want.deadline, "deadline");
        CHECK_EQ(now.period, want.period, "period");
    }
}

/* A child of one with reset-on-fork has the flag no more, nor a real-time policy. */
static void check_reset(void)
{
    struct attr attr = ATTRS[3];
    attr.size = sizeof(attr);
    SYS(syscall(SYS_sched_setattr, 0, &attr, 0));
    while (guest_running())
        check(3);
    pid_t pid = SYS(fork());
    if (pid == 0) {
        SYS(syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0));
        CHECK_EQ(attr.flags & RESET, 0, "reset-on-fork of a child");
        CHECK_EQ(attr.policy, BATCH, "policy of a child");
        _exit(0);
    }
    int status;
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 0, "the end of a child");
}

int main(void)
{
    guest_begin();
    if (!is_privileged() && sched_getscheduler(0) == SCHED_IDLE)
        skip("it was started with SCHED_IDLE, which it may not leave");
    each_hold(is_privileged() ? COUNT(ATTRS) : 4, 1, setup, check);
    check_reset();
    guest_success();
}
