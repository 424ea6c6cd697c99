/* System V shared memory of a parent and its children: one attached by all, one read only, one in
 * part, one attached twice, one that nobody has attached; keys, identifiers, modes, counts. */
#include "crew.h"
#include <sys/ipc.h>
#include <sys/shm.h>

#define SIZE (8 * PAGE)
enum { ALL, PART, TWICE, NONE, KINDS };

static int ids[KINDS];
static uint64_t *view[KINDS], *again;
static const uint64_t *read_only;
static char *rest;
static key_t key;

static uint64_t *attach(int id, int flags)
{
    void *at = shmat(id, NULL, flags);
    CHECK(at != (void *)-1, "shmat: %s", strerror(errno));
    return at;
}

static long serve(int n, char question)
{
    (void)n;
    (void)question;
    view[ALL][0]++;
    CHECK_EQ(read_only[0], view[ALL][0], "a word seen read only");
    return (long)read_only[0];
}

static void check_segment(int kind, unsigned long attached)
{
    struct shmid_ds ds;
    SYS(shmctl(ids[kind], IPC_STAT, &ds));
    CHECK_EQ(ds.shm_segsz, SIZE - (size_t)kind, "size");
    CHECK_EQ(ds.shm_nattch, attached, "attachments");
    CHECK_EQ(ds.shm_cpid, getpid(), "creator");
    CHECK_EQ(ds.shm_perm.mode, kind == ALL ? 0640 : 0600, "mode");
    CHECK_EQ(ds.shm_perm.uid, getuid(), "owner");
    CHECK_EQ(ds.shm_perm.cuid, getuid(), "owner at the begin");
    CHECK_EQ(ds.shm_perm.__key, kind == ALL ? key : IPC_PRIVATE, "key");
}

int main(void)
{
    guest_begin();
    key = 0x5600000 + getpid();
    for (int kind = 0; kind < KINDS; kind++)
        ids[kind] = SYS(shmget(kind == ALL ? key : IPC_PRIVATE, SIZE - (size_t)kind,
                               IPC_CREAT | IPC_EXCL | (kind == ALL ? 0640 : 0600)));
    for (int kind = 0; kind < NONE; kind++) {
        view[kind] = attach(ids[kind], 0);
        guest_fill(view[kind] + 8, SIZE - PAGE, (uint64_t)kind);
    }
    again = attach(ids[TWICE], 0);
    read_only = attach(ids[ALL], SHM_RDONLY);
    uint64_t *none = attach(ids[NONE], 0);
    guest_fill(none, SIZE - PAGE, NONE);
    SYS(shmdt(none));
    rest = (char *)view[PART] + 2 * PAGE;
    SYS(munmap(view[PART], 2 * PAGE));
    SYS(mprotect(rest + PAGE, PAGE, PROT_READ));
    struct mate mates[2] = {crew_start(0, serve), crew_start(1, serve)};
    guest_ready();
    long turn = 0;
    do {
        CHECK_EQ(crew_ask(&mates[0], 'x'), ++turn, "a word counted up by a child");
        CHECK_EQ(crew_ask(&mates[1], 'x'), ++turn, "a word counted up by a child");
        CHECK_EQ(read_only[0], turn, "a word seen read only");
        guest_verify(view[ALL] + 8, SIZE - PAGE, ALL, "the segment of all");
        guest_verify(read_only + 8, SIZE - PAGE, ALL, "the segment seen read only");
        guest_verify(rest, SIZE - 3 * PAGE, PART + 2 * PAGE / 8 - 8, "the rest of a segment");
        again[0]++;
        CHECK_EQ(view[TWICE][0], again[0], "two attachments of one segment");
        check_segment(ALL, 6);
        /* The change of protection has divided it. */
        check_segment(PART, 9);
        check_segment(TWICE, 6);
        check_segment(NONE, 0);
        CHECK_EQ(SYS(shmget(key, 0, 0)), ids[ALL], "identifier of the key");
        CHECK(mprotect((void *)read_only, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
              "read only memory became writable");
        uint64_t *now = attach(ids[NONE], SHM_RDONLY);
        guest_verify(now, SIZE - PAGE, NONE, "the segment that nobody has attached");
        SYS(shmdt(now));
    } while (guest_running());
    crew_end(&mates[0]);
    crew_end(&mates[1]);
    SYS(shmdt(read_only));
    SYS(shmdt(again));
    SYS(shmdt((char *)rest - 2 * PAGE));
    check_segment(PART, 0);
    check_segment(ALL, 1);
    check_segment(TWICE, 1);
    for (int kind = 0; kind < KINDS; kind++)
        SYS(shmctl(ids[kind], IPC_RMID, NULL));
    guest_success();
}
