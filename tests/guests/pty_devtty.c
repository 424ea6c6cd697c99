/* A process with a session of its own and both sides of its controlling terminal: /dev/tty, open
 * all the time and opened anew; the session; SIGWINCH; the foreground group. */
#include "pty.h"

static volatile sig_atomic_t winches;

static void on_winch(int sig)
{
    winches += sig == SIGWINCH;
}

int main(void)
{
    guest_begin();
    if (getsid(0) != getpid() && setsid() == -1) {
        pid_t pid = SYS(fork());
        if (pid)
            skip("leads a group already");
    }
    struct sigaction act = {.sa_handler = on_winch, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGWINCH, &act, NULL));
    struct pty pty = pty_open();
    pty_raw(pty.slave);
    SYS(ioctl(pty.slave, TIOCSCTTY, 0));
    int kept = SYS(open("/dev/tty", O_RDWR | O_NONBLOCK));
    SYS(close(pty.slave));
    guest_ready();
    int turn = 0;
    do {
        struct stat st;
        struct winsize size = {.ws_row = 20, .ws_col = (unsigned short)(++turn % 1000 + 1)}, got;
        int again = SYS(open("/dev/tty", O_RDWR));
        SYS(fstat(kept, &st));
        CHECK_EQ(st.st_rdev, 0x500, "device of /dev/tty");
        CHECK_EQ(SYS(fcntl(kept, F_GETFL)) & O_NONBLOCK, O_NONBLOCK, "flags of /dev/tty");
        CHECK_EQ(SYS(tcgetsid(kept)), getpid(), "session");
        CHECK_EQ(SYS(tcgetpgrp(again)), getpgrp(), "foreground group");
        pty_say(kept, "kept");
        pty_expect(pty.master, "kept", 4, "through the one kept open");
        pty_say(pty.master, "key");
        pty_expect(again, "key", 3, "through the new one");
        winches = 0;
        SYS(ioctl(pty.master, TIOCSWINSZ, &size));
        CHECK_EQ(winches, 1, "SIGWINCH");
        SYS(ioctl(kept, TIOCGWINSZ, &got));
        CHECK_EQ(got.ws_col, size.ws_col, "columns");
        SYS(close(again));
        winches = 0;
        guest_running();
        CHECK_EQ(winches, 0, "SIGWINCH that nobody has sent");
    } while (guest_running());
    guest_success();
}
