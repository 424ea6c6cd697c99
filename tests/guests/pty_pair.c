/* Both sides of a pty in one process: its name, and bytes through it in both directions. */
#include "pty.h"

int main(void)
{
    guest_begin();
    struct pty pty = pty_open();
    int again = SYS(dup(pty.slave)), only = SYS(open(ttyname(pty.slave), O_RDONLY | O_NOCTTY));
    guest_ready();
    long turn = 0;
    do {
        char line[64], shown[64];
        snprintf(line, sizeof(line), "line %ld\n", ++turn);
        snprintf(shown, sizeof(shown), "line %ld\r\n", turn);
        pty_check_name(&pty);
        pty_say(pty.master, line);
        pty_expect(turn % 2 ? pty.slave : only, line, strlen(line), "typed");
        pty_expect(pty.master, shown, strlen(shown), "the echo");
        pty_say(again, line);
        pty_expect(pty.master, shown, strlen(shown), "written");
        CHECK_EQ(pty_poll(pty.master, POLLIN | POLLPRI), 0, "nothing more");
        CHECK(write(only, "x", 1) == -1 && errno == EBADF, "a read-only slave is written to");
    } while (guest_running());
    guest_success();
}
