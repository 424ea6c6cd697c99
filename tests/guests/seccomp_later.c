/* A child puts in a filter that lets it signal nobody but itself, again and again: either that works
 * as it says, or the filter is refused. */
#include "guest.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/wait.h>

__attribute__((noreturn)) static void confine(void)
{
    pid_t own = getpid();
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)own, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        CHECK_EQ(errno, EINVAL, "a filter that is refused");
    CHECK_EQ(syscall(SYS_tgkill, own, own, 0), 0, "a signal to oneself");
    _exit(5);
}

int main(void)
{
    guest_begin();
    guest_ready();
    do {
        pid_t child = SYS(fork());
        if (child == 0)
            confine();
        int status;
        SYS(waitpid(child, &status, 0));
        CHECK_EQ(status, 5 << 8, "status of the child");
    } while (guest_running());
    guest_success();
}
