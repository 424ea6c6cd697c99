/* Two processes with one memory (CLONE_VM of clone(2)) that are no threads: each writes what the
 * other one reads, maps what the other one uses, and has descriptors and a directory of its own. A
 * child of fork(2) has a copy. In the end one of them executes another program. */
#include "shared.h"

enum { PAGES = 16, OWN = 30 };

static volatile long common, answer;
static char *volatile mapped;
static long *heap;

static void partner(long turn)
{
    CHECK_EQ(common, turn, "what the other one has written");
    CHECK_EQ(*heap, turn, "the same on the heap");
    CHECK_EQ(lseek(OWN, 0, SEEK_CUR), 2, "a descriptor of its own");
    for (int page = 0; page < PAGES; page++)
        CHECK_EQ(mapped[page * PAGE], (char)(turn + page), "a page of the other one's mapping");
    SYS(munmap(mapped, PAGES * PAGE));
    mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapped != MAP_FAILED, "mmap: %s", strerror(errno));
    *mapped = (char)~turn;
    answer = turn + 1000;
}

static void begin(long turn)
{
    if (turn == 1) {
        char path[256];
        SYS(close(OWN));
        SYS(dup2(SYS(open(guest_path(path, sizeof(path), "own"), O_RDWR)), OWN));
        SYS(lseek(OWN, 2, SEEK_SET));
        SYS(chdir("/usr"));
    }
    char now[64];
    CHECK(getcwd(now, sizeof(now)) && !strcmp(now, "/usr"), "its own directory");
    partner(turn);
}

static void witness(long turn)
{
    (void)turn;
    CHECK_EQ(common, 0, "the copy");
    CHECK_EQ(*heap, 0, "the copy on the heap");
}

static void turn(long n)
{
    char *map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    for (int page = 0; page < PAGES; page++)
        map[page * PAGE] = (char)(n + page);
    mapped = map;
    common = n;
    *heap = n;
    shared_turn(n);
    CHECK_EQ(answer, n + 1000, "what the partner has written");
    CHECK_EQ(*mapped, (char)~n, "its mapping");
    SYS(munmap(mapped, PAGE));
    CHECK_EQ(lseek(OWN, 0, SEEK_CUR), 1, "a descriptor of its own");
    char now[64];
    CHECK(getcwd(now, sizeof(now)) && !strcmp(now, "/tmp"), "its own directory");
}

static void leave(long n)
{
    (void)n;
    execl("/bin/true", "true", (char *)NULL);
    fail("exec: %s", strerror(errno));
}

int main(void)
{
    char path[256];
    guest_begin();
    shared_begin();
    SYS(chdir("/tmp"));
    heap = calloc(1, sizeof(*heap));
    int fd = SYS(open(guest_path(path, sizeof(path), "own"), O_CREAT | O_RDWR, 0600));
    SYS(dup2(fd, OWN));
    SYS(lseek(OWN, 1, SEEK_SET));
    pid_t apart = shared_witness(witness);
    pid_t other = shared_partner(CLONE_VM, begin);
    long n = shared_turns(turn);
    shared_end(other, apart);
    shared->over = 0;
    shared->partner = n - 1;
    shared->turn = n;
    shared_reap(shared_partner(CLONE_VM, leave));
    CHECK_EQ(common, n - 1, "memory after the other one's exec");
    SYS(unlink(path));
    guest_success();
}
