/* First process of a test host's pid namespace: collects orphans until stdin is closed; its
 * end is the end of every process of the host. Prints `READY` once. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void)
{
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    struct pollfd polls[2] = {{.fd = 0, .events = POLLIN},
                              {.fd = signalfd(-1, &child, SFD_CLOEXEC), .events = POLLIN}};
    if (polls[1].fd < 0)
        return 1;
    puts("READY");
    fflush(stdout);
    for (;;) {
        if (poll(polls, 2, -1) < 0 && errno != EINTR)
            return 1;
        if (polls[0].revents)
            return 0;
        struct signalfd_siginfo info;
        if (polls[1].revents && read(polls[1].fd, &info, sizeof(info)) < 0)
            return 1;
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}
