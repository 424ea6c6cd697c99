/* signalfds of a tree: children and grandchildren make ones of their own, execute a program that has
 * inherited one, end and are replaced, while the program moves. */
#include "guest.h"
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

enum { CHILDREN = 3 };

/* Between a child and its program; from the parent; from children. */
static sigset_t set, wishes, answers;

/* Waits for a signal, which is to be from `sender`. */
static void expect(int fd, pid_t sender, const char *who)
{
    struct signalfd_siginfo info;
    CHECK_EQ(SYS(read(fd, &info, sizeof(info))), sizeof(info), who);
    CHECK(info.ssi_pid == (uint32_t)sender, "%s: sent by %d, not by %d", who, info.ssi_pid, sender);
}

/* The program that was executed: `signalfd_tree FD`. */
__attribute__((noreturn)) static void executed(int fd)
{
    SYS(kill(getppid(), SIGUSR2));
    for (int n = 0; n < 3; n++) {
        expect(fd, getppid(), "an executed program");
        SYS(kill(getppid(), SIGUSR2));
    }
    _exit(6);
}

/* Makes a signalfd or two, and a child that executes with one of them. */
__attribute__((noreturn)) static void serve(const char *program, int fd)
{
    int status, own = SYS(signalfd(-1, &set, SFD_CLOEXEC)), twice = SYS(dup(fd));
    pid_t parent = getpid();
    int wish = SYS(signalfd(-1, &wishes, SFD_CLOEXEC));
    SYS(close(fd));
    for (;;) {
        char number[16];
        snprintf(number, sizeof(number), "%d", twice);
        pid_t child = SYS(fork());
        if (child == 0) {
            SYS(prctl(PR_SET_PDEATHSIG, SIGKILL));
            if (getppid() != parent)
                _exit(0);
            SYS(execl(program, "signalfd_tree", number, NULL));
            _exit(1);
        }
        expect(own, child, "a word of the program");
        for (int n = 0; n < 3; n++) {
            SYS(kill(child, SIGUSR2));
            expect(n % 2 ? own : twice, child, "an answer of the program");
        }
        SYS(waitpid(child, &status, 0));
        CHECK_EQ(status, 6 << 8, "status of the program");
        /* The next one is another descriptor. */
        int next = SYS(fcntl(twice, F_DUPFD, twice > 50 ? 30 : 60));
        SYS(close(twice));
        twice = next;
        expect(wish, getppid(), "what the parent wants");
        SYS(kill(getppid(), SIGUSR1));
    }
}

int main(int argc, char **argv)
{
    char program[512];
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    if (argc > 1)
        executed(atoi(argv[1]));
    guest_begin();
    program[SYS(readlink("/proc/self/exe", program, sizeof(program) - 1))] = 0;
    sigemptyset(&answers);
    sigaddset(&answers, SIGUSR1);
    sigemptyset(&wishes);
    sigaddset(&wishes, SIGRTMIN);
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    SYS(sigprocmask(SIG_BLOCK, &answers, NULL));
    SYS(sigprocmask(SIG_BLOCK, &wishes, NULL));
    int fd = SYS(signalfd(-1, &set, 0));
    pid_t all[CHILDREN];
    for (int i = 0; i < CHILDREN; i++)
        if ((all[i] = SYS(fork())) == 0)
            serve(program, fd);
    guest_ready();
    int turn = 0, more;
    do {
        int of_turn = SYS(signalfd(-1, &answers, SFD_CLOEXEC));
        more = guest_running();
        for (int i = 0; i < CHILDREN; i++) {
            SYS(kill(all[i], SIGRTMIN));
            expect(of_turn, all[i], "an answer of a child");
        }
        SYS(close(of_turn));
        int *old = (int *)&all[turn++ % CHILDREN];
        if (turn % 5 == 0) {
            SYS(kill(*old, SIGKILL));
            SYS(waitpid(*old, NULL, 0));
            if ((*old = SYS(fork())) == 0)
                serve(program, fd);
        }
    } while (more);
    for (int i = 0; i < CHILDREN; i++) {
        SYS(kill(all[i], SIGKILL));
        SYS(waitpid(all[i], NULL, 0));
    }
    guest_success();
}
