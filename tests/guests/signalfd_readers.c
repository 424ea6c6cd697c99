/* Reads of signalfds that wait while the program moves: in a thread, of ones that another thread
 * makes, and in a child. */
#include "guest.h"
#include <pthread.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

struct pipes {
    int ask[2], answer[2];
};

static sigset_t set;
static struct pipes of_thread, of_child;

/* Reads of the signalfds whose numbers come, and tells who has sent. */
static void *serve(void *pipes)
{
    struct pipes *p = pipes;
    struct signalfd_siginfo info;
    int fd;
    while (read(p->ask[0], &fd, sizeof(fd)) == sizeof(fd)) {
        CHECK_EQ(SYS(read(fd, &info, sizeof(info))), sizeof(info), "read of a signalfd");
        SYS(write(p->answer[1], &info.ssi_pid, sizeof(info.ssi_pid)));
    }
    return NULL;
}

static void ask(struct pipes *p, int fd)
{
    SYS(write(p->ask[1], &fd, sizeof(fd)));
}

static void answered(struct pipes *p, const char *who)
{
    uint32_t pid;
    CHECK_EQ(SYS(read(p->answer[0], &pid, sizeof(pid))), sizeof(pid), "answer");
    CHECK(pid == (uint32_t)getpid(), "%s: sent by %d, not by %d", who, pid, getpid());
}

int main(void)
{
    guest_begin();
    pthread_t thread;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    int fd = SYS(signalfd(-1, &set, SFD_CLOEXEC));
    struct pipes *all[] = {&of_thread, &of_child};
    for (size_t i = 0; i < COUNT(all); i++) {
        SYS(pipe2(all[i]->ask, O_CLOEXEC));
        SYS(pipe2(all[i]->answer, O_CLOEXEC));
    }
    pid_t child = SYS(fork());
    if (child == 0) {
        SYS(close(of_child.ask[1]));
        serve(&of_child);
        _exit(8);
    }
    CHECK_EQ(pthread_create(&thread, NULL, serve, &of_thread), 0, "pthread_create");
    guest_ready();
    int more;
    do {
        int fresh = SYS(signalfd(-1, &set, 0));
        ask(&of_thread, fresh);
        ask(&of_child, fd);
        more = guest_running();
        SYS(kill(getpid(), SIGUSR1));
        answered(&of_thread, "the thread");
        SYS(kill(child, SIGUSR1));
        answered(&of_child, "the child");
        SYS(close(fresh));
    } while (more);
    int status;
    SYS(close(of_child.ask[1]));
    SYS(waitpid(child, &status, 0));
    CHECK_EQ(status, 8 << 8, "status of the child");
    guest_success();
}
