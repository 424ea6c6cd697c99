/* Processes that wait in semop(2) and semtimedop(2), for a value and for zero, are woken by those
 * that they wait for, and by nothing else. */
#include "crew.h"
#include <sys/ipc.h>
#include <sys/sem.h>

static int id;

static void op(int number, int by, int flags)
{
    struct sembuf one = {(unsigned short)number, (short)by, (short)flags};
    SYS(semop(id, &one, 1));
}

static long serve(int n, char question)
{
    (void)question;
    struct timespec hour = {3600, 0};
    struct sembuf two[2] = {{0, -3, SEM_UNDO}, {2, 1, 0}}, zero = {1, 0, 0};
    if (n == 0)
        SYS(semop(id, two, 2));
    else
        SYS(semtimedop(id, &zero, 1, &hour));
    return SYS(semctl(id, 2, GETVAL));
}

static void await_waiters(int number, int command)
{
    while (SYS(semctl(id, number, command)) == 0)
        usleep(500);
}

int main(void)
{
    guest_begin();
    id = SYS(semget(IPC_PRIVATE, 3, 0600));
    op(1, 1, 0);
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    guest_ready();
    int turn = 0;
    do {
        crew_say(&mates[0], 'x');
        crew_say(&mates[1], 'x');
        await_waiters(0, GETNCNT);
        await_waiters(1, GETZCNT);
        for (int look = 0; look < 200; look++) {
            CHECK_EQ(SYS(semctl(id, 0, GETNCNT)), 1, "waiters");
            CHECK_EQ(SYS(semctl(id, 1, GETZCNT)), 1, "waiters for zero");
        }
        guest_running();
        op(0, 2, 0);
        guest_running();
        CHECK_EQ(SYS(semctl(id, 2, GETVAL)), turn, "operations that waited");
        CHECK_EQ(SYS(semctl(id, 0, GETVAL)), 2, "a value that is too low");
        op(0, 1, 0);
        crew_hear(&mates[0]);
        CHECK_EQ(SYS(semctl(id, 2, GETVAL)), ++turn, "operations that waited");
        op(1, -1, 0);
        crew_hear(&mates[1]);
        op(1, 1, 0);
    } while (guest_running());
    crew_end(&mates[0]);
    CHECK_EQ(SYS(semctl(id, 0, GETVAL)), 3 * turn, "all that was undone");
    crew_end(&mates[1]);
    SYS(semctl(id, 0, IPC_RMID));
    guest_success();
}
