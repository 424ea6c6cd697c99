/* Two processes that undo semaphore operations together (CLONE_SYSVSEM of clone(2)): what one has
 * done with SEM_UNDO is undone when the last of them has ended, and not before. */
#include "shared.h"
#include <sys/ipc.h>
#include <sys/sem.h>

enum { STACK = 256 << 10, MORE = 3 };

static int set;
static volatile long *word;

static void add(short number, short amount)
{
    struct sembuf operation = {.sem_num = 0, .sem_op = amount, .sem_flg = SEM_UNDO};
    operation.sem_num = (unsigned short)number;
    SYS(semop(set, &operation, 1));
}

static int value(void)
{
    return SYS(semctl(set, 0, GETVAL));
}

/* Takes part until it is told to end. */
static int partner(void *unused)
{
    (void)unused;
    add(0, MORE);
    word[1] = 1;
    while (!word[2])
        shared_nap();
    add(0, MORE);
    _exit(0);
}

/* Has a partner, which ends before it. */
__attribute__((noreturn)) static void first(void)
{
    char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(stack != MAP_FAILED, "mmap: %s", strerror(errno));
    add(0, 1);
    pid_t other = SYS(clone(partner, stack + STACK, CLONE_SYSVSEM | SIGCHLD, NULL));
    while (!word[2])
        shared_nap();
    shared_reap(other);
    word[3] = 1;
    while (!word[4])
        shared_nap();
    _exit(0);
}

int main(void)
{
    guest_begin();
    word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(word != MAP_FAILED, "mmap: %s", strerror(errno));
    set = SYS(semget(IPC_PRIVATE, 1, 0600));
    SYS(semctl(set, 0, SETVAL, 10));
    pid_t child = SYS(fork());
    if (child == 0)
        first();
    while (!word[1])
        shared_nap();
    guest_ready();
    do
        CHECK_EQ(value(), 11 + MORE, "while both run");
    while (guest_running());
    word[2] = 1;
    while (!word[3])
        shared_nap();
    CHECK_EQ(value(), 11 + 2 * MORE, "when one has ended");
    word[4] = 1;
    shared_reap(child);
    CHECK_EQ(value(), 10, "when both have ended");
    SYS(semctl(set, 0, IPC_RMID));
    guest_success();
}
