/* Prints everything a program inherits, for comparison with a run without vosrun. */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        printf("arg %s\n", argv[i]);
    unsigned long sum = 5381;
    for (char **e = environ; *e; e++)
        for (char *c = *e; *c; c++)
            sum = sum * 33 + (unsigned char)*c;
    printf("env %lu\n", sum);

    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    for (int s = 1; s < 65; s++) {
        struct sigaction sa;
        if (s == 32 || s == 33 || sigaction(s, NULL, &sa))
            continue;
        printf("signal %d %s%s\n", s, sigismember(&mask, s) ? "blocked " : "",
               sa.sa_handler == SIG_IGN ? "ignored" : sa.sa_handler == SIG_DFL ? "default" : "?");
    }
    mode_t um = umask(0);
    char cwd[4096] = "";
    printf("umask %o cwd %s nice %d\n", um, getcwd(cwd, sizeof cwd), getpriority(PRIO_PROCESS, 0));
    for (int r = 0; r < RLIM_NLIMITS; r++) {
        struct rlimit l;
        getrlimit(r, &l);
        printf("limit %d %lu %lu\n", r, l.rlim_cur, l.rlim_max);
    }
    printf("group %d session %d ids %d %d %d %d\n", getpgrp(), getsid(0), getuid(), geteuid(),
           getgid(), getegid());
    int death = -1;
    prctl(PR_GET_PDEATHSIG, &death);
    printf("personality %x dumpable %d pdeathsig %d slack %d securebits %d keepcaps %d\n",
           personality(0xffffffff), prctl(PR_GET_DUMPABLE), death, prctl(PR_GET_TIMERSLACK),
           prctl(PR_GET_SECUREBITS), prctl(PR_GET_KEEPCAPS));
    for (int fd = 0; fd < 1024; fd++) {
        char name[64], target[4096];
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(name, target, sizeof target - 1);
        if (n >= 0)
            printf("fd %d %.*s\n", fd, (int)n, target);
    }
    fflush(stdout);
    return 0;
}
