/* vfork, posix_spawn and exec before the moves: the program that moves is the third one of
 * the chain and still has what exec keeps. */
#include "guest.h"
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static void run_children(void)
{
    int status;
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(9);
    }
    CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "wait for the vforked child");
    CHECK_EQ(status, 0, "its status");
    char *const args[] = {"sh", "-c", "exit 3", NULL};
    CHECK_EQ(posix_spawn(&child, "/bin/sh", NULL, NULL, args, environ), 0, "posix_spawn");
    CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "wait for the spawned child");
    CHECK_EQ(WEXITSTATUS(status), 3, "its status");
}

int main(int argc, char **argv)
{
    int step = argc > 1 ? atoi(argv[1]) : 0;
    if (step < 2) {
        run_children();
        if (step == 0)
            CHECK_EQ(SYS(dup2(SYS(open("/dev/null", O_RDWR)), 55)), 55, "dup2");
        char next[16], pid[16];
        snprintf(next, sizeof(next), "%d", step + 1);
        snprintf(pid, sizeof(pid), "%d", getpid());
        execl("/proc/self/exe", argv[0], next, pid, (char *)NULL);
        fail("exec: %s", strerror(errno));
    }
    guest_begin();
    guest_ready();
    do {
        CHECK_EQ(getpid(), atoi(argv[2]), "the pid of the chain");
        CHECK_EQ(write(55, "x", 1), 1, "the fd kept by exec");
    } while (guest_running());
    /* And a child after the move. */
    run_children();
    guest_success();
}
