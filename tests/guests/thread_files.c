/* Threads with a descriptor table of their own (CLONE_FILES of unshare(2)), and one that shares that
 * of the process: numbers that stand for other files, that are closed, that are only theirs, with
 * other flags. What the process opens or closes later only the sharing thread sees. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>

enum { OWN = 2, SAME = 30, MOVED = 31, GONE = 32, ALONE = 33, PIPE = 34, LATER = 35 };

static char path[256];
static pthread_barrier_t ready;
static volatile long turn, done[OWN + 1];
static int to_thread[OWN];
static volatile int over;

static off_t at(int fd)
{
    return lseek(fd, 0, SEEK_CUR);
}

static void put(int number, off_t offset, int flags)
{
    int fd = SYS(open(path, O_RDWR));
    SYS(lseek(fd, offset, SEEK_SET));
    SYS(dup3(fd, number, flags));
    SYS(close(fd));
}

/* The open descriptors of this thread, as numbers below 512 tell. */
static int count_open(void)
{
    int count = 0;
    for (int fd = 0; fd < 512; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void check_own(int n, int numbers)
{
    char byte;
    CHECK_EQ(at(SAME), 100, "a description of the process too");
    CHECK_EQ(SYS(fcntl(SAME, F_GETFD)), n ? FD_CLOEXEC : 0, "its flags here");
    CHECK_EQ(at(MOVED), 300 + n, "another file of that number");
    CHECK_EQ(SYS(fcntl(MOVED, F_GETFD)), FD_CLOEXEC, "its flags");
    CHECK_EQ(at(GONE), -1, "closed here");
    CHECK_EQ(at(ALONE), 500 + n, "only here");
    CHECK_EQ(at(LATER), -1, "opened elsewhere");
    CHECK_EQ(count_open(), numbers, "open descriptors");
    CHECK_EQ(read(PIPE, &byte, 1), 1, "read");
    CHECK_EQ(byte, (char)turn, "what the process has written");
}

static void *own(void *arg)
{
    int n = (int)(intptr_t)arg;
    SYS(unshare(CLONE_FILES));
    SYS(close(GONE));
    put(MOVED, 300 + n, O_CLOEXEC);
    put(ALONE, 500 + n, 0);
    SYS(fcntl(SAME, F_SETFD, n ? FD_CLOEXEC : 0));
    SYS(dup2(to_thread[n], PIPE));
    for (int i = 0; i < OWN; i++)
        SYS(close(to_thread[i]));
    int numbers = count_open();
    pthread_barrier_wait(&ready);
    for (long seen = 0; !over;) {
        if (turn == seen) {
            usleep(200);
            continue;
        }
        check_own(n, numbers);
        done[n] = seen = turn;
    }
    return NULL;
}

static void *common(void *unused)
{
    pthread_barrier_wait(&ready);
    for (long seen = 0; !over;) {
        if (turn == seen) {
            usleep(200);
            continue;
        }
        CHECK_EQ(at(SAME), 100, "a descriptor of the process");
        CHECK_EQ(at(MOVED), 200, "a descriptor of the process");
        CHECK_EQ(at(GONE), 400, "a descriptor of the process");
        CHECK_EQ(at(ALONE), -1, "one of another thread");
        CHECK_EQ(at(LATER), turn, "what the process has opened");
        SYS(close(LATER));
        done[OWN] = seen = turn;
    }
    return unused;
}

int main(void)
{
    guest_begin();
    pthread_t ids[OWN + 1];
    int write_ends[OWN];
    guest_path(path, sizeof(path), "file");
    SYS(close(SYS(open(path, O_CREAT | O_RDWR, 0600))));
    put(SAME, 100, O_CLOEXEC);
    put(MOVED, 200, 0);
    put(GONE, 400, 0);
    for (int n = 0; n < OWN; n++) {
        int ends[2];
        SYS(pipe(ends));
        to_thread[n] = ends[0];
        write_ends[n] = ends[1];
    }
    CHECK_EQ(pthread_barrier_init(&ready, NULL, OWN + 2), 0, "barrier");
    for (int n = 0; n < OWN; n++)
        CHECK_EQ(pthread_create(&ids[n], NULL, own, (void *)(intptr_t)n), 0, "thread");
    CHECK_EQ(pthread_create(&ids[OWN], NULL, common, NULL), 0, "thread");
    pthread_barrier_wait(&ready);
    for (int n = 0; n < OWN; n++)
        SYS(close(to_thread[n]));
    int numbers = count_open();
    guest_ready();
    do {
        long next = turn + 1;
        put(LATER, next, 0);
        for (int n = 0; n < OWN; n++) {
            char byte = (char)next;
            CHECK_EQ(write(write_ends[n], &byte, 1), 1, "write to a thread");
        }
        turn = next;
        for (int n = 0; n <= OWN; n++)
            while (done[n] != next)
                usleep(200);
        CHECK_EQ(at(LATER), -1, "closed by the other thread");
        CHECK_EQ(count_open(), numbers, "open descriptors");
    } while (guest_running());
    over = 1;
    for (int n = 0; n <= OWN; n++)
        pthread_join(ids[n], NULL);
    SYS(unlink(path));
    guest_success();
}
