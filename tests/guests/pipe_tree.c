/* One pipe with several writers and readers: each byte comes once, those in flight included;
 * readers and writers are asleep most of the time. */
#include "guest.h"
#include <sys/wait.h>

enum { WRITERS = 2, READERS = 3 };

int main(void)
{
    guest_begin();
    volatile long *sums =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(sums != MAP_FAILED, "mmap: %s", strerror(errno));
    volatile long *wrote = sums, *was_read = sums + 1, *stop = sums + 2;
    int ends[2];
    SYS(pipe(ends));
    int capacity = SYS(fcntl(ends[0], F_SETPIPE_SZ, 8192));
    pid_t all[WRITERS + READERS];
    for (int n = 0; n < WRITERS + READERS; n++) {
        all[n] = SYS(fork());
        if (all[n])
            continue;
        unsigned char bytes[300];
        if (n < WRITERS) {
            close(ends[0]);
            for (unsigned turn = (unsigned)n; !*stop; turn++) {
                long sum = 0;
                for (size_t i = 0; i < sizeof(bytes); i++)
                    sum += bytes[i] = (unsigned char)(turn * 7 + i);
                CHECK_EQ(SYS(write(ends[1], bytes, sizeof(bytes))), sizeof(bytes), "write");
                __atomic_add_fetch(wrote, sum, __ATOMIC_SEQ_CST);
            }
            _exit(0);
        }
        close(ends[1]);
        ssize_t got;
        while ((got = SYS(read(ends[0], bytes, 100 + (size_t)n))) > 0) {
            long sum = 0;
            for (ssize_t i = 0; i < got; i++)
                sum += bytes[i];
            __atomic_add_fetch(was_read, sum, __ATOMIC_SEQ_CST);
            usleep(200);
        }
        _exit(0);
    }
    guest_ready();
    do {
        CHECK_EQ(SYS(fcntl(ends[0], F_GETPIPE_SZ)), capacity, "capacity");
    } while (guest_running());
    *stop = 1;
    close(ends[1]);
    close(ends[0]);
    for (int n = 0; n < WRITERS + READERS; n++) {
        int status;
        SYS(waitpid(all[n], &status, 0));
        CHECK_EQ(status, 0, "status of a process");
    }
    CHECK_EQ(*was_read, *wrote, "sum of all bytes");
    guest_success();
}
