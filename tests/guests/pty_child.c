/* A child in a session of its own, with a pty for its controlling terminal; its parent has the
 * master. */
#include "pty.h"
#include <pty.h>
#include <sys/wait.h>

__attribute__((noreturn)) static void serve(void)
{
    char line[256], answer[512], name[64];
    int named = SYS(open("/dev/tty", O_RDWR));
    for (;;) {
        ssize_t n = SYS(read(0, line, sizeof(line)));
        if (n == 0)
            _exit(7);
        CHECK_EQ(tcgetpgrp(0), getpgrp(), "foreground group");
        CHECK_EQ(tcgetsid(named), getsid(0), "session of /dev/tty");
        int again = SYS(open("/dev/tty", O_RDWR));
        pty_name(0, name, sizeof(name));
        int len = snprintf(answer, sizeof(answer), "%d %d %s %.*s", getpid(), getsid(0), name, (int)n,
                           line);
        CHECK_EQ(write(line[0] % 2 ? named : again, answer, (size_t)len), len, "answer");
        SYS(close(again));
    }
}

int main(void)
{
    guest_begin();
    int master;
    char name[64];
    struct termios modes;
    struct winsize size = {.ws_row = 33, .ws_col = 99};
    pid_t pid = SYS(forkpty(&master, name, NULL, &size));
    if (pid == 0)
        serve();
    SYS(tcgetattr(master, &modes));
    modes.c_lflag &= ~(tcflag_t)ECHO;
    modes.c_oflag &= ~(tcflag_t)OPOST;
    SYS(tcsetattr(master, TCSANOW, &modes));
    guest_ready();
    long turn = 0;
    do {
        char line[64], want[256];
        int group = -1, session = -1;
        snprintf(line, sizeof(line), "%ld times\n", ++turn);
        snprintf(want, sizeof(want), "%d %d %s %s", pid, pid, name, line);
        pty_say(master, line);
        pty_expect(master, want, strlen(want), "answer");
        SYS(ioctl(master, TIOCGPGRP, &group));
        SYS(ioctl(master, TIOCGSID, &session));
        CHECK_EQ(group, pid, "foreground group, seen by the master");
        CHECK_EQ(session, pid, "session, seen by the master");
    } while (guest_running());
    int status;
    pty_say(master, "\x04");
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 7 << 8, "status of the child");
    CHECK(read(master, &status, 1) == -1 && errno == EIO, "the slave is not closed");
    guest_success();
}
