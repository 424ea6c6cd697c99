/* eventfd: count, semaphore mode, a full one, flags, duplicates. */
#include "guest.h"
#include <sys/eventfd.h>

int main(void)
{
    guest_begin();
    int plain = SYS(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    int semaphore = SYS(eventfd(1000000, EFD_SEMAPHORE | EFD_NONBLOCK));
    int full = SYS(eventfd(0, EFD_NONBLOCK));
    int twin = SYS(dup(plain));
    uint64_t most = UINT64_MAX - 1, n, taken = 0;
    CHECK_EQ(write(full, &most, 8), 8, "write");
    guest_ready();
    for (uint64_t turn = 1;; turn++) {
        CHECK_EQ(write(twin, &turn, 8), 8, "write");
        if (!guest_running())
            break;
        CHECK_EQ(read(plain, &n, 8), 8, "read");
        CHECK_EQ(n, turn, "the count");
        CHECK(read(plain, &n, 8) == -1 && errno == EAGAIN, "the count was not taken");
        CHECK_EQ(read(semaphore, &n, 8), 8, "read of the semaphore");
        CHECK_EQ(n, 1, "the semaphore gives");
        taken++;
        CHECK(write(full, &turn, 8) == -1 && errno == EAGAIN, "the full eventfd takes more");
        CHECK_EQ(SYS(fcntl(plain, F_GETFD)), FD_CLOEXEC, "close-on-exec");
        CHECK_EQ(SYS(fcntl(twin, F_GETFD)), 0, "close-on-exec of the duplicate");
    }
    CHECK_EQ(read(full, &n, 8), 8, "read of the full eventfd");
    CHECK_EQ(n, most, "the largest count");
    /* The rest of the semaphore is what was not taken. */
    uint64_t rest = 0, more = 5;
    CHECK_EQ(write(semaphore, &more, 8), 8, "write");
    while (read(semaphore, &n, 8) == 8)
        rest++;
    CHECK_EQ(rest + taken, 1000005, "the semaphore's count");
    guest_success();
}
