/* A writer that fills a pipe and a reader that empties it, all the time: a write that blocks writes
 * everything (pipe(7)), and every byte comes once and in order. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <sys/uio.h>

enum { WORDS = 24 * 1024 };

static int ends[2];
static volatile int ending;

static void *writer(void *unused)
{
    static uint64_t words[WORDS];
    for (uint64_t next = 0; !ending;) {
        size_t count = 1000 + guest_mix(next) % (WORDS - 1000), part = count / 3;
        for (size_t i = 0; i < count; i++)
            words[i] = next++;
        struct iovec parts[2] = {{words, part * 8}, {words + part, (count - part) * 8}};
        ssize_t n = next % 2 ? write(ends[1], words, count * 8) : writev(ends[1], parts, 2);
        CHECK(n == (ssize_t)(count * 8), "a write of %zu bytes gave %zd (%s)", count * 8, n,
              n < 0 ? strerror(errno) : "too few");
    }
    SYS(close(ends[1]));
    return unused;
}

static void *reader(void *unused)
{
    static uint64_t words[3000];
    size_t have = 0;
    ssize_t n;
    for (uint64_t next = 0;; have %= 8) {
        n = SYS(read(ends[0], (char *)words + have, sizeof(words) - have - guest_mix(next) % 8000));
        if (n == 0)
            break;
        have += (size_t)n;
        for (size_t i = 0; i < have / 8; i++, next++)
            CHECK_EQ(words[i], next, "a word of the pipe");
        memmove(words, words + have / 8, have % 8);
        /* Slower than the writer, which so waits in the middle of a write nearly always. */
        SYS(clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = 200000}, NULL));
    }
    CHECK_EQ(have, 0, "bytes left over");
    return unused;
}

int main(void)
{
    guest_begin();
    SYS(pipe(ends));
    pthread_t threads[2];
    CHECK_EQ(pthread_create(&threads[0], NULL, writer, NULL), 0, "pthread_create");
    CHECK_EQ(pthread_create(&threads[1], NULL, reader, NULL), 0, "pthread_create");
    guest_ready();
    while (guest_running())
        ;
    ending = 1;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    guest_success();
}
