/* A child that is stopped and continued again and again: each stop and each SIGCONT is told to its
 * parent, which sends SIGCONT the moment a move is over. */
#include "guest.h"
#include <sys/wait.h>

static void stop(pid_t child)
{
    int status;
    SYS(kill(child, SIGSTOP));
    CHECK_EQ(SYS(waitpid(child, &status, WUNTRACED)), child, "waitpid of a stop");
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "status of a stop: %#x", status);
}

/* That it goes on is known at once. */
static void go_on(pid_t child)
{
    int status;
    SYS(kill(child, SIGCONT));
    CHECK_EQ(SYS(waitpid(child, &status, WCONTINUED | WNOHANG)), child, "SIGCONT is told");
    CHECK(WIFCONTINUED(status), "status of a continued child: %#x", status);
}

int main(void)
{
    guest_begin();
    volatile long *beats =
        mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(beats != MAP_FAILED, "mmap: %s", strerror(errno));
    pid_t child = SYS(fork());
    while (child == 0) {
        ++*beats;
        usleep(200);
    }
    guest_ready();
    do {
        stop(child);
        long seen = *beats;
        /* Not asleep: nothing is between the end of a move and what follows. */
        uint64_t until = clock_ns(CLOCK_MONOTONIC) + 10000000;
        while (clock_ns(CLOCK_MONOTONIC) < until)
            ;
        CHECK_EQ(*beats, seen, "what a stopped child has done");
        go_on(child);
        while (*beats == seen)
            usleep(200);
    } while (guest_running());
    int status;
    SYS(kill(child, SIGKILL));
    CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "the end of the child");
    CHECK_EQ(status, SIGKILL, "status of the child");
    guest_success();
}
