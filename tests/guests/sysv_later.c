/* System V objects that come and go all the time: made by keys and without, by a parent and a child,
 * found by their keys, in the lists of shmctl(2), semctl(2) and msgctl(2), and by what of them is
 * told; a key that is taken, one that is free again, objects that are no more. Some stay from turn
 * to turn: they keep their identifiers. */
#include "crew.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { SHM, SEM, MSG, KINDS };
/* The place of an object in the kernel's list is this part of its identifier. */
enum { PLACE = 0x7fff };

union semun {
    int val;
    struct semid_ds *buf;
    struct seminfo *info;
};

struct kept {
    int id;
    key_t key;
    pid_t maker;
};

static key_t base;

static int get(int kind, key_t key, int flags)
{
    if (kind == SHM)
        return shmget(key, PAGE, flags);
    return kind == SEM ? semget(key, 2, flags) : msgget(key, flags);
}

static int control(int kind, int id, int command, void *at)
{
    union semun arg = {.buf = at};
    if (kind == SHM)
        return shmctl(id, command, at);
    return kind == SEM ? semctl(id, 0, command, arg) : msgctl(id, command, at);
}

/* Makes an object, and uses it: of one that nobody has used nothing tells whose it is. */
static int make(int kind, key_t key, int flags)
{
    struct sembuf both[2] = {{0, 1, 0}, {0, -1, 0}};
    long message[2] = {1, 2};
    int id = SYS(get(kind, key, flags));
    if (kind == SEM)
        SYS(semop(id, both, 2));
    if (kind == MSG) {
        SYS(msgsnd(id, message, sizeof(long), 0));
        CHECK_EQ(SYS(msgrcv(id, message, sizeof(long), 0, 0)), sizeof(long), "a message");
    }
    return id;
}

static void drop(int kind, int id)
{
    SYS(control(kind, id, IPC_RMID, NULL));
}

static key_t key_of(int kind, int id, pid_t *maker)
{
    struct shmid_ds shm;
    struct semid_ds sem;
    struct msqid_ds msg;
    void *at = kind == SHM ? (void *)&shm : kind == SEM ? (void *)&sem : (void *)&msg;
    SYS(control(kind, id, IPC_STAT, at));
    *maker = kind == SHM ? shm.shm_cpid : 0;
    return kind == SHM ? shm.shm_perm.__key : kind == SEM ? sem.sem_perm.__key : msg.msg_perm.__key;
}

/* What the lists say of an object, and of what is none. */
static void listed(int kind, int id, key_t key)
{
    static const int by_place[] = {SHM_STAT, SEM_STAT, MSG_STAT};
    static const int any[] = {SHM_STAT_ANY, SEM_STAT_ANY, MSG_STAT_ANY};
    static const int count[] = {SHM_INFO, SEM_INFO, MSG_INFO};
    char at[256];
    struct ipc_perm *perm = (struct ipc_perm *)at;
    CHECK_EQ(control(kind, id & PLACE, by_place[kind], at), id, "identifier at its place");
    CHECK_EQ(perm->__key, key, "key at its place");
    CHECK_EQ(control(kind, id & PLACE, any[kind], at), id, "identifier at its place, unread");
    int last = SYS(control(kind, 0, count[kind], at));
    CHECK(last >= (id & PLACE), "the last place is %d, that of %d behind it", last, id);
    CHECK(SYS(control(kind, 0, IPC_INFO, at)) >= (id & PLACE), "another last place");
    CHECK(control(kind, PLACE - 1, by_place[kind], at) == -1 && errno == EINVAL, "a place too many");
}

static void is_gone(int kind, int id, key_t key)
{
    char at[256];
    CHECK(control(kind, id, IPC_STAT, at) == -1 && (errno == EINVAL || errno == EIDRM),
          "an object that is no more");
    if (key != IPC_PRIVATE)
        CHECK(get(kind, key, 0600) == -1 && errno == ENOENT, "the key of no object");
}

static long serve(int n, char question)
{
    int kind = question - 'a';
    (void)n;
    return make(kind, base + 40 + kind, IPC_CREAT | IPC_EXCL | 0600);
}

int main(void)
{
    guest_begin();
    base = 0x6a000000 + 64 * (getpid() & 0xfffff);
    struct mate mate = crew_start(0, serve);
    struct kept kept[KINDS][3];
    for (int kind = 0; kind < KINDS; kind++)
        for (int n = 0; n < 3; n++) {
            key_t key = n ? base + n : IPC_PRIVATE;
            kept[kind][n] = (struct kept){make(kind, key, IPC_CREAT | 0600), key, getpid()};
        }
    guest_ready();
    int turn = 0;
    do {
        for (int kind = 0; kind < KINDS; kind++) {
            for (int n = 0; n < 3; n++) {
                struct kept *one = &kept[kind][n];
                pid_t maker;
                CHECK_EQ(key_of(kind, one->id, &maker), one->key, "key of one that stays");
                if (kind == SHM)
                    CHECK_EQ(maker, one->maker, "who made it");
                if (one->key != IPC_PRIVATE) {
                    CHECK_EQ(get(kind, one->key, 0600), one->id, "what the key leads to");
                    CHECK_EQ(get(kind, one->key, IPC_CREAT | 0600), one->id, "the same");
                    CHECK(get(kind, one->key, IPC_CREAT | IPC_EXCL | 0600) == -1 && errno == EEXIST,
                          "a key that is taken");
                }
                listed(kind, one->id, one->key);
            }
            /* One of them is another one from here on. */
            struct kept *one = &kept[kind][turn % 3];
            drop(kind, one->id);
            is_gone(kind, one->id, one->key);
            *one = (struct kept){make(kind, one->key, IPC_CREAT | 0640), one->key, getpid()};
            int others = (int)crew_ask(&mate, (char)('a' + kind));
            CHECK_EQ(SYS(get(kind, base + 40 + kind, 0)), others, "what the child has made");
            drop(kind, others);
            CHECK(get(kind, base + 50, 0600) == -1 && errno == ENOENT, "a key that nobody has");
            CHECK(control(kind, -1, IPC_STAT, NULL) == -1 && errno == EINVAL, "no identifier");
        }
        CHECK(semget(base + 51, -1, 0) == -1 && errno == EINVAL, "a size before a key");
        turn++;
    } while (guest_running());
    crew_end(&mate);
    for (int kind = 0; kind < KINDS; kind++)
        for (int n = 0; n < 3; n++)
            drop(kind, kept[kind][n].id);
    guest_success();
}
