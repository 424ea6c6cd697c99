/* Execs itself, or forks, when the harness says so: `$GUEST_STATUS.exec`, `$GUEST_STATUS.fork`
 * appear. `$GUEST_STATUS.did` appears when it is done. The second program of the exec and the
 * parent of the fork go on as the guest. */
#include "guest.h"
#include <sys/wait.h>

static int asked(const char *what)
{
    char path[256];
    return access(guest_path(path, sizeof(path), what), F_OK) == 0;
}

static void say_done(void)
{
    char path[256];
    SYS(close(SYS(open(guest_path(path, sizeof(path), "did"), O_WRONLY | O_CREAT, 0644))));
}

static pid_t fork_child(void)
{
    pid_t child = SYS(fork());
    if (child == 0) {
        while (!guest_stopping())
            usleep(1000);
        _exit(5);
    }
    say_done();
    return child;
}

int main(int argc, char **argv)
{
    guest_begin();
    int again = argc > 2 && !strcmp(argv[2], "again");
    if (again)
        say_done();
    guest_ready_quietly();
    pid_t child = 0;
    do {
        if (!again && asked("exec")) {
            execl("/proc/self/exe", argv[0], argv[1], "again", (char *)NULL);
            fail("exec: %s", strerror(errno));
        }
        if (!child && asked("fork"))
            child = fork_child();
    } while (guest_running());
    int status = 5 << 8;
    if (child)
        CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "waitpid");
    CHECK_EQ(WEXITSTATUS(status), 5, "the child's status");
    guest_success();
}
