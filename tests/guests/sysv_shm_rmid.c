/* A System V segment that was marked for removal while it is attached, by the parent that has
 * detached it and by a child; it is gone with the last of them. */
#include "crew.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define SIZE (8 * PAGE)

static int id;
static uint64_t *view;

static long serve(int n, char question)
{
    (void)n;
    if (question == 'd') {
        SYS(shmdt(view));
        return 0;
    }
    guest_verify(view + 1, SIZE - PAGE, 5, "the removed segment");
    return (long)++view[0];
}

int main(void)
{
    guest_begin();
    id = SYS(shmget(0x5700000 + getpid(), SIZE, IPC_CREAT | IPC_EXCL | 0600));
    view = shmat(id, NULL, 0);
    CHECK(view != (void *)-1, "shmat: %s", strerror(errno));
    guest_fill(view + 1, SIZE - PAGE, 5);
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    SYS(shmctl(id, IPC_RMID, NULL));
    SYS(shmdt(view));
    guest_ready();
    long turn = 0;
    struct shmid_ds ds;
    do {
        CHECK_EQ(crew_ask(&mates[0], 'x'), ++turn, "a word counted up");
        CHECK_EQ(crew_ask(&mates[1], 'x'), ++turn, "a word counted up");
        SYS(shmctl(id, IPC_STAT, &ds));
        CHECK_EQ(ds.shm_nattch, 2, "attachments");
        CHECK_EQ(ds.shm_perm.mode, 01600, "mode");
        CHECK_EQ(ds.shm_perm.__key, IPC_PRIVATE, "key");
    } while (guest_running());
    crew_ask(&mates[0], 'd');
    SYS(shmctl(id, IPC_STAT, &ds));
    crew_end(&mates[1]);
    CHECK(shmctl(id, IPC_STAT, &ds) == -1, "the segment has outlived its last attachment");
    crew_end(&mates[0]);
    guest_success();
}
