/* Processes whose leader or parent has ended: a daemon in a session that nobody leads, a pipeline
 * whose first process is gone. */
#include "guest.h"
#include <sys/wait.h>

struct ids {
    pid_t pid, pgid, sid;
    int orphaned;
};

static volatile struct ids *slots;
static volatile int *go;

/* Reports its numbers in its slot for ever. */
__attribute__((noreturn)) static void report(int slot, pid_t parent)
{
    while (!*go) {
        slots[slot].pgid = getpgid(0);
        slots[slot].sid = getsid(0);
        slots[slot].orphaned = getppid() != parent;
        slots[slot].pid = getpid();
        usleep(1000);
    }
    slots[slot].pid = -1;
    _exit(20 + slot);
}

static struct ids seen(int slot)
{
    slots[slot].pid = 0;
    while (!slots[slot].pid)
        usleep(1000);
    return (struct ids){slots[slot].pid, slots[slot].pgid, slots[slot].sid, slots[slot].orphaned};
}

/* Slot 0: a daemon, made by a session leader that ends. */
static void start_daemon(void)
{
    pid_t leader = SYS(fork());
    if (leader == 0) {
        SYS(setsid());
        pid_t parent = getpid();
        if (SYS(fork()) == 0)
            report(0, parent);
        _exit(0);
    }
    SYS(waitpid(leader, NULL, 0));
}

/* Slot 1: the second of a pipeline whose first, the leader of the group, has ended. */
static pid_t start_group(void)
{
    pid_t first = SYS(fork());
    if (first == 0)
        for (;;)
            pause();
    SYS(setpgid(first, first));
    pid_t second = SYS(fork());
    if (second == 0) {
        SYS(setpgid(0, first));
        report(1, getppid());
    }
    while (seen(1).pgid != first)
        ;
    SYS(kill(first, SIGKILL));
    SYS(waitpid(first, NULL, 0));
    return second;
}

int main(void)
{
    guest_begin();
    size_t size = 4096;
    slots = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(slots != MAP_FAILED, "mmap: %s", strerror(errno));
    go = (volatile int *)((volatile char *)slots + size - sizeof(int));
    start_daemon();
    pid_t second = start_group();
    struct ids was[2];
    for (int slot = 0; slot < 2; slot++)
        was[slot] = seen(slot);
    CHECK(was[0].sid != was[0].pid && was[0].sid != getsid(0), "the daemon has its own session");
    CHECK_EQ(was[1].pid, second, "pid of the second");
    guest_ready();
    do {
        for (int slot = 0; slot < 2; slot++) {
            struct ids now = seen(slot);
            CHECK_EQ(now.pid, was[slot].pid, "pid");
            CHECK_EQ(now.pgid, was[slot].pgid, "group");
            CHECK_EQ(now.sid, was[slot].sid, "session");
            CHECK_EQ(now.orphaned, was[slot].orphaned, "parent");
        }
    } while (guest_running());
    *go = 1;
    int status;
    CHECK_EQ(SYS(waitpid(second, &status, 0)), second, "waitpid");
    CHECK_EQ(status, 21 << 8, "status");
    while (slots[0].pid != -1)
        usleep(1000);
    guest_success();
}
