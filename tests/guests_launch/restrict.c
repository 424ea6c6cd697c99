/* Restricts itself: a seccomp filter of its own, set*id, realtime signals, io_uring. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { printf("%d: %s: %s\n", __LINE__, #c, strerror(errno)); exit(1); } } while (0)

static volatile sig_atomic_t seen;
static void handler(int sig) { seen = sig; }

static void *wait_for_ever(void *arg)
{
    for (;;)
        pause();
    return arg;
}

int main(void)
{
    setvbuf(stdout, NULL, _IONBF, 0);
    for (int s = SIGRTMIN; s <= SIGRTMAX; s++) {
        signal(s, handler);
        CHECK(!raise(s) && seen == s);
    }
    pthread_t t;
    CHECK(!pthread_create(&t, NULL, wait_for_ever, NULL));
    CHECK(!pthread_cancel(t) && !pthread_join(t, NULL)); /* SIGCANCEL, 32 */
    CHECK(!pthread_create(&t, NULL, wait_for_ever, NULL));
    if (getuid() == 0)
        CHECK(!setgid(4321) && !setuid(4321) && setuid(0) == -1); /* SIGSETXID, 33 */
    else
        CHECK(setuid(0) == -1 && errno == EPERM);
    CHECK(syscall(SYS_io_uring_setup, 1, NULL) == -1 && errno == ENOSYS);

    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EXDEV),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgrp, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 7),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_inotify_add_watch, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {sizeof code / sizeof *code, code};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
    CHECK(syscall(SYS_getppid) == -1 && errno == EXDEV);
    signal(SIGSYS, handler);
    syscall(SYS_getpgrp);
    CHECK(seen == SIGSYS);
    CHECK(syscall(SYS_getpgid, 0) == -1 && errno == ENOSYS);
    CHECK(syscall(SYS_inotify_add_watch, -1, "/", 1) == -1 && errno == ENOSYS);
    puts("EXIT-SUCCESS");
    return 0;
}
