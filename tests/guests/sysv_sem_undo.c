/* System V semaphores with SEM_UNDO: what each process has changed is undone when that one ends,
 * and no other; values, who was last, key, mode. */
#include "crew.h"
#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>

enum { COUNT = 5, CHILDREN = 3 };

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static int id;

static void op(int number, int by, int flags)
{
    struct sembuf one = {(unsigned short)number, (short)by, (short)flags};
    SYS(semop(id, &one, 1));
}

static void *nothing(void *arg)
{
    return arg;
}

static long serve(int n, char question)
{
    if (question == 't') {
        /* A thread has the amounts in common with its maker. */
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, nothing, NULL), 0, "pthread_create");
        pthread_join(thread, NULL);
    }
    if (question == 'u') {
        op(n, -(n + 1), SEM_UNDO);
        op(3, 10, SEM_UNDO);
        op(4, -1, 0);
    }
    if (question == 'c') {
        op(n, -2, SEM_UNDO);
        op(n, 2, SEM_UNDO);
    }
    return SYS(semctl(id, n, GETVAL));
}

static void check_values(const int *want)
{
    unsigned short values[COUNT];
    union semun arg = {.array = values};
    SYS(semctl(id, 0, GETALL, arg));
    for (int n = 0; n < COUNT; n++)
        CHECK_EQ(values[n], want[n], "value of a semaphore");
}

int main(void)
{
    guest_begin();
    key_t key = 0x5800000 + getpid();
    id = SYS(semget(key, COUNT, IPC_CREAT | IPC_EXCL | 0600));
    unsigned short begin[COUNT] = {100, 100, 100, 0, 32767};
    union semun arg = {.array = begin};
    SYS(semctl(id, 0, SETALL, arg));
    struct mate mates[CHILDREN];
    for (int n = 0; n < CHILDREN; n++)
        mates[n] = crew_start(n, serve);
    crew_ask(&mates[1], 't');
    for (int n = 0; n < CHILDREN; n++)
        crew_ask(&mates[n], 'u');
    op(3, 5, SEM_UNDO);
    guest_ready();
    int want[COUNT] = {99, 98, 97, 35, 32764};
    struct semid_ds ds;
    arg.buf = &ds;
    do {
        check_values(want);
        CHECK_EQ(SYS(semctl(id, 3, GETPID)), getpid(), "the last one");
        for (int n = 0; n < CHILDREN; n++) {
            CHECK_EQ(crew_ask(&mates[n], 'c'), 99 - n, "value seen by a child");
            CHECK_EQ(SYS(semctl(id, n, GETPID)), mates[n].pid, "the last one");
        }
        CHECK_EQ(SYS(semctl(id, 4, GETPID)), mates[2].pid, "the last one");
        CHECK_EQ(SYS(semget(key, COUNT, 0)), id, "identifier of the key");
        SYS(semctl(id, 0, IPC_STAT, arg));
        CHECK_EQ(ds.sem_nsems, COUNT, "count");
        CHECK_EQ(ds.sem_perm.mode, 0600, "mode");
        CHECK_EQ(ds.sem_perm.uid, getuid(), "owner");
    } while (guest_running());
    for (int n = 0; n < CHILDREN; n++) {
        crew_end(&mates[n]);
        want[n] = 100;
        want[3] -= 10;
        check_values(want);
    }
    SYS(semctl(id, 0, IPC_RMID));
    guest_success();
}
