/* EPOLLEXCLUSIVE: several processes sleep in epoll_wait for one eventfd; each token wakes one at
 * least, and is taken once. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

enum { WORKERS = 3 };

int main(void)
{
    guest_begin();
    volatile int *taken =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(taken != MAP_FAILED, "mmap: %s", strerror(errno));
    int tokens = SYS(eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK));
    pid_t workers[WORKERS];
    for (int n = 0; n < WORKERS; n++) {
        workers[n] = SYS(fork());
        if (workers[n])
            continue;
        struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE, .data.u32 = 77};
        int epoll = SYS(epoll_create1(0));
        SYS(epoll_ctl(epoll, EPOLL_CTL_ADD, tokens, &event));
        for (;;) {
            uint64_t one;
            CHECK_EQ(SYS(epoll_wait(epoll, &event, 1, -1)), 1, "epoll_wait without a timeout");
            CHECK_EQ(event.data.u32, 77, "data");
            if (read(tokens, &one, 8) == 8)
                __atomic_add_fetch(taken, 1, __ATOMIC_SEQ_CST);
        }
    }
    guest_ready();
    int given = 0;
    do {
        uint64_t some = 5;
        SYS(write(tokens, &some, 8));
        given += 5;
        while (*taken < given)
            usleep(100);
        CHECK_EQ(*taken, given, "tokens taken");
    } while (guest_running());
    for (int n = 0; n < WORKERS; n++) {
        SYS(kill(workers[n], SIGKILL));
        SYS(waitpid(workers[n], NULL, 0));
    }
    guest_success();
}
