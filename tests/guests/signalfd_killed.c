/* Children that make signalfds without a pause are killed at any moment, while the program moves. */
#include "guest.h"
#include <sys/signalfd.h>
#include <sys/wait.h>

__attribute__((noreturn)) static void make_signalfds(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    for (int number = 100;; number++) {
        int fd = SYS(signalfd(-1, &set, SFD_CLOEXEC));
        /* A number that was not one before. */
        if (number < 400) {
            SYS(dup2(fd, number));
            SYS(close(number));
        }
        SYS(close(fd));
    }
}

int main(void)
{
    int more;
    guest_begin();
    guest_ready();
    do {
        more = guest_running();
        pid_t child = SYS(fork());
        if (child == 0)
            make_signalfds();
        int status;
        struct timespec moment = {.tv_nsec = (long)(guest_mix(guest_counter) % 3000000)};
        nanosleep(&moment, NULL);
        SYS(kill(child, SIGKILL));
        SYS(waitpid(child, &status, 0));
        CHECK_EQ(status, SIGKILL, "status of a child");
    } while (more);
    guest_success();
}
