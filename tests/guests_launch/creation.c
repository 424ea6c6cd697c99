/* Makes processes and threads in every way there is, then execs itself from a thread that
 * is not the leader, and prints EXIT-SUCCESS. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *self;

#define CHECK(c) do { if (!(c)) { printf("%d: %s: %s\n", __LINE__, #c, strerror(errno)); exit(1); } } while (0)

static void reap(pid_t pid, int code)
{
    int status;
    CHECK(pid > 0);
    CHECK(waitpid(pid, &status, __WALL) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code);
}

static void *idle(void *arg) { return arg; }

static void *forking(void *arg)
{
    for (int i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (!pid)
            _exit(7);
        reap(pid, 7);
    }
    return arg;
}

static int cloned(void *arg) { return *(int *)arg; }

static void *exec_again(void *arg)
{
    execl(self, self, "again", NULL);
    perror("execl");
    exit(1);
    return arg;
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        CHECK(getpid() == (pid_t)syscall(SYS_gettid));
        puts("EXIT-SUCCESS");
        return 0;
    }
    self = argv[0];
    setvbuf(stdout, NULL, _IONBF, 0);
    pthread_t t[50];
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 50; i++)
            CHECK(!pthread_create(&t[i], NULL, idle, NULL));
        for (int i = 0; i < 50; i++)
            pthread_join(t[i], NULL);
    }
    for (int i = 0; i < 8; i++)
        CHECK(!pthread_create(&t[i], NULL, forking, NULL));
    for (int i = 0; i < 8; i++)
        pthread_join(t[i], NULL);

    char *shell[] = {"sh", "-c", "exit 3", NULL};
    for (int i = 0; i < 10; i++) {
        pid_t pid = vfork();
        if (!pid) {
            execv("/bin/sh", shell);
            _exit(99);
        }
        reap(pid, 3);
        CHECK(!posix_spawn(&pid, "/bin/sh", NULL, NULL, shell, environ));
        reap(pid, 3);
    }
    struct clone_args ca = {.exit_signal = SIGCHLD};
    pid_t pid = syscall(SYS_clone3, &ca, sizeof ca);
    if (!pid)
        _exit(5);
    reap(pid, 5);
    ca.exit_signal = 0; /* reported as a clone event though it is a process */
    pid = syscall(SYS_clone3, &ca, sizeof ca);
    if (!pid)
        _exit(6);
    reap(pid, 6);
    signal(SIGUSR1, SIG_IGN);
    static char stack[65536] __attribute__((aligned(16)));
    int code = 4;
    reap(clone(cloned, stack + sizeof stack, CLONE_VM | SIGUSR1, &code), 4);

    for (int i = 0; i < 5; i++) /* signals that glibc keeps for itself */
        CHECK(!kill(getpid(), 0));
    CHECK(!pthread_create(&t[0], NULL, exec_again, NULL));
    pthread_join(t[0], NULL);
    return 1;
}
