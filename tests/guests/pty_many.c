/* Many ptys, with holes in their numbers, some shared with children. */
#include "pty.h"
#include <sys/wait.h>

enum { MANY = 40 };

int main(void)
{
    guest_begin();
    struct pty all[MANY];
    pid_t child[MANY] = {0};
    for (int i = 0; i < MANY; i++)
        all[i] = pty_open();
    for (int i = 0; i < MANY; i += 3) {
        SYS(close(all[i].slave));
        SYS(close(all[i].master));
        all[i].master = -1;
    }
    for (int i = 1; i < MANY; i += 9) {
        child[i] = SYS(fork());
        if (child[i] == 0) {
            char byte;
            while (read(all[i].slave, &byte, 1) == 1)
                SYS(write(all[i].slave, (char[]){'0' + i % 10}, 1));
            _exit(0);
        }
        pty_raw(all[i].slave);
    }
    guest_ready();
    do {
        for (int i = 0; i < MANY; i++) {
            if (all[i].master < 0)
                continue;
            pty_check_name(&all[i]);
            if (child[i]) {
                pty_say(all[i].master, "?");
                pty_expect(all[i].master, (char[]){'0' + i % 10}, 1, "answer of a child");
            }
        }
    } while (guest_running());
    for (int i = 0; i < MANY; i++)
        if (child[i]) {
            SYS(kill(child[i], SIGTERM));
            SYS(waitpid(child[i], NULL, 0));
        }
    guest_success();
}
