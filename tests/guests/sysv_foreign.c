/* Attaches the System V segment of the key that is its argument; two of these share it. */
#include "guest.h"
#include <sys/ipc.h>
#include <sys/shm.h>

int main(int argc, char **argv)
{
    guest_begin();
    CHECK(argc > 1, "no key");
    int id = SYS(shmget((key_t)strtol(argv[1], NULL, 10), PAGE, IPC_CREAT | 0600));
    uint64_t *view = shmat(id, NULL, 0);
    CHECK(view != (void *)-1, "shmat: %s", strerror(errno));
    guest_ready();
    do
        __atomic_add_fetch(view, 1, __ATOMIC_SEQ_CST);
    while (guest_running());
    struct shmid_ds ds;
    SYS(shmctl(id, IPC_STAT, &ds));
    if (ds.shm_nattch == 1)
        SYS(shmctl(id, IPC_RMID, NULL));
    guest_success();
}
