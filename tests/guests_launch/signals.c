/* Reports every signal it gets on stdout, by one of three ways of getting signals:
 * "handler", "sigwait", "signalfd". SIGUSR2 ends it and prints how many came. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static int count;

static void report(int sig)
{
    char line[32];
    if (sig == SIGUSR2) {
        int n = snprintf(line, sizeof line, "total %d\n", count);
        write(1, line, n);
        _exit(0);
    }
    count++;
    int n = snprintf(line, sizeof line, "got %d\n", sig);
    write(1, line, n);
}

int main(int argc, char **argv)
{
    sigset_t all, none;
    sigemptyset(&none);
    sigfillset(&all);
    sigdelset(&all, SIGCONT);
    sigprocmask(SIG_BLOCK, &all, NULL);
    if (argc > 1 && !strcmp(argv[1], "sigwait")) {
        write(1, "ready\n", 6);
        for (int sig;;)
            if (!sigwait(&all, &sig))
                report(sig);
    }
    if (argc > 1 && !strcmp(argv[1], "signalfd")) {
        int fd = signalfd(-1, &all, 0);
        struct signalfd_siginfo info;
        write(1, "ready\n", 6);
        while (read(fd, &info, sizeof info) == sizeof info)
            report(info.ssi_signo);
        return 1;
    }
    struct sigaction sa = {.sa_handler = report, .sa_mask = all};
    for (int s = 1; s < 65; s++)
        if (s != SIGKILL && s != SIGSTOP && s != SIGCONT && s != SIGTSTP)
            sigaction(s, &sa, NULL);
    write(1, "ready\n", 6);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (;;)
        pause();
}
