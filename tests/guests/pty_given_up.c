/* A process that has given up its session's terminal (TIOCNOTTY) has none, while its leader and a
 * sibling have it. */
#include "pty.h"
#include <sys/wait.h>

static void check_terminal(int wanted)
{
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY);
    if (wanted) {
        CHECK(fd >= 0, "/dev/tty: %s", strerror(errno));
        SYS(close(fd));
        return;
    }
    CHECK(fd == -1, "it has a terminal again");
    CHECK_EQ(errno, ENXIO, "opening /dev/tty");
}

__attribute__((noreturn)) static void check_for_ever(int wanted, int ready)
{
    check_terminal(wanted);
    CHECK_EQ(write(ready, "", 1), 1, "write");
    for (;;) {
        check_terminal(wanted);
        usleep(1000);
    }
}

__attribute__((noreturn)) static void lead(int ready)
{
    SYS(setsid());
    struct pty pty = pty_open();
    SYS(ioctl(pty.slave, TIOCSCTTY, 0));
    if (SYS(fork()) == 0) {
        SYS(ioctl(pty.slave, TIOCNOTTY));
        check_for_ever(0, ready);
    }
    if (SYS(fork()) == 0)
        check_for_ever(1, ready);
    check_for_ever(1, ready);
}

int main(void)
{
    guest_begin();
    int ends[2];
    SYS(pipe(ends));
    pid_t leader = SYS(fork());
    if (leader == 0)
        lead(ends[1]);
    for (int n = 0; n < 3; n++) {
        char byte;
        CHECK_EQ(SYS(read(ends[0], &byte, 1)), 1, "read");
    }
    guest_ready();
    do
        CHECK_EQ(SYS(waitpid(leader, NULL, WNOHANG)), 0, "the leader has ended");
    while (guest_running());
    int status;
    /* Its end hangs the terminal up: the sibling that has it gets SIGHUP. */
    SYS(kill(leader, SIGKILL));
    SYS(waitpid(leader, &status, 0));
    CHECK_EQ(status, SIGKILL, "status of the leader");
    guest_success();
}
