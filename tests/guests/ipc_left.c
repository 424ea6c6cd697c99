/* Makes System V objects and a POSIX message queue again and again, and removes none of them. */
#include "guest.h"
#include <mqueue.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

int main(void)
{
    guest_begin();
    /* The mode by which the test knows them. */
    umask(0);
    key_t key = 0x5b00000 + getpid();
    char name[64];
    snprintf(name, sizeof(name), "/guest.%d.%d.left", (int)getuid(), getpid());
    struct mq_attr attr = {.mq_maxmsg = 1, .mq_msgsize = 8};
    SYS(mq_open(name, O_CREAT | O_RDWR, 0646, &attr));
    guest_ready();
    for (int turn = 0; turn == 0 || guest_running(); turn++) {
        if (turn < 40) {
            SYS(shmget(IPC_PRIVATE, PAGE, 0646));
            SYS(msgget(IPC_PRIVATE, 0646));
        }
        SYS(shmget(key, PAGE, IPC_CREAT | 0646));
        SYS(semget(key, 3, IPC_CREAT | 0646));
        SYS(msgget(key, IPC_CREAT | 0646));
        mq_close(SYS(mq_open(name, O_CREAT | O_RDWR, 0646, &attr)));
    }
    guest_success();
}
