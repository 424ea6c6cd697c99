/* A semaphore of eventfd(2) that processes share: blocked readers, and a blocked writer of a full
 * one. */
#include "guest.h"
#include <sys/eventfd.h>
#include <sys/wait.h>

enum { READERS = 3 };

int main(void)
{
    guest_begin();
    volatile int *got = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(got != MAP_FAILED, "mmap: %s", strerror(errno));
    int semaphore = SYS(eventfd(0, EFD_SEMAPHORE)), full = SYS(eventfd(0, 0));
    uint64_t most = UINT64_MAX - 1, value;
    SYS(write(full, &most, 8));
    pid_t child[READERS + 1];
    for (int n = 0; n <= READERS; n++) {
        child[n] = SYS(fork());
        while (child[n] == 0) {
            uint64_t one = 1;
            if (n == READERS) {
                CHECK_EQ(SYS(write(full, &one, 8)), 8, "the blocked write");
                _exit(0);
            }
            CHECK_EQ(SYS(read(semaphore, &one, 8)), 8, "read");
            CHECK_EQ(one, 1, "the semaphore gives");
            __atomic_add_fetch(got, 1, __ATOMIC_SEQ_CST);
        }
    }
    guest_ready();
    int given = 0, status;
    do {
        value = 7;
        SYS(write(semaphore, &value, 8));
        given += 7;
        while (*got < given)
            usleep(100);
        CHECK_EQ(*got, given, "taken of the semaphore");
        CHECK_EQ(SYS(waitpid(child[READERS], &status, WNOHANG)), 0, "the blocked writer has ended");
    } while (guest_running());
    SYS(read(full, &value, 8));
    CHECK_EQ(value, most, "the largest count");
    SYS(waitpid(child[READERS], &status, 0));
    CHECK_EQ(status, 0, "status of the writer");
    SYS(read(full, &value, 8));
    CHECK_EQ(value, 1, "what the blocked writer wrote");
    for (int n = 0; n < READERS; n++) {
        SYS(kill(child[n], SIGKILL));
        SYS(waitpid(child[n], NULL, 0));
    }
    guest_success();
}
