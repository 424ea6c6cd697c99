/* POSIX shared memory (shm_open(3)) of a parent and a child: one that keeps its name, one that was
 * unlinked while it is mapped, one unlinked that is open as well, and a named semaphore. */
#include "crew.h"
#include <semaphore.h>

#define SIZE (8 * PAGE)
enum { NAMED, UNLINKED, OPEN, KINDS };

static uint64_t *view[KINDS];
static int open_fd;
static sem_t *semaphore;

static long serve(int n, char question)
{
    (void)n;
    (void)question;
    for (int kind = 0; kind < KINDS; kind++)
        view[kind][0]++;
    SYS(sem_post(semaphore));
    return 0;
}

int main(void)
{
    guest_begin();
    char name[64], sem_name[64];
    for (int kind = 0; kind < KINDS; kind++) {
        snprintf(name, sizeof(name), "/guest.%d.%d.%d", (int)getuid(), getpid(), kind);
        int fd = SYS(shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600));
        SYS(ftruncate(fd, SIZE));
        view[kind] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(view[kind] != MAP_FAILED, "mmap: %s", strerror(errno));
        guest_fill(view[kind] + 8, SIZE - 64, (uint64_t)kind);
        if (kind != NAMED)
            SYS(shm_unlink(name));
        if (kind == OPEN)
            open_fd = fd;
        else
            close(fd);
    }
    snprintf(sem_name, sizeof(sem_name), "/guest.%d.%d", (int)getuid(), getpid());
    semaphore = sem_open(sem_name, O_CREAT | O_EXCL, 0600, 0);
    CHECK(semaphore != SEM_FAILED, "sem_open: %s", strerror(errno));
    SYS(sem_unlink(sem_name));
    struct mate mate = crew_start(0, serve);
    guest_ready();
    uint64_t turn = 0;
    do {
        turn++;
        crew_say(&mate, 'x');
        SYS(sem_wait(semaphore));
        crew_hear(&mate);
        for (int kind = 0; kind < KINDS; kind++) {
            CHECK_EQ(view[kind][0], turn, "a word that the child counts up");
            guest_verify(view[kind] + 8, SIZE - 64, (uint64_t)kind, "shared memory");
        }
        uint64_t word;
        CHECK_EQ(pread(open_fd, &word, 8, 0), 8, "read");
        CHECK_EQ(word, turn, "a word read");
        snprintf(name, sizeof(name), "/guest.%d.%d.%d", (int)getuid(), getpid(), NAMED);
        int fd = SYS(shm_open(name, O_RDWR, 0));
        CHECK_EQ(pread(fd, &word, 8, 0), 8, "read of the named one");
        CHECK_EQ(word, turn, "a word of the named one");
        close(fd);
    } while (guest_running());
    snprintf(name, sizeof(name), "/guest.%d.%d.%d", (int)getuid(), getpid(), NAMED);
    SYS(shm_unlink(name));
    crew_end(&mate);
    guest_success();
}
