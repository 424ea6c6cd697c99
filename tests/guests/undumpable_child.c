/* Children that have made themselves non-dumpable, one of which never waits, of a parent that has
 * not. */
#include "guest.h"
#include <sys/prctl.h>
#include <sys/wait.h>

static void hide(void) { SYS(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)); }

static void check_hidden(void) { CHECK_EQ(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 0, "PR_GET_DUMPABLE"); }

/* Answers each byte. */
__attribute__((noreturn)) static void answer(int from, int to)
{
    char byte;
    while (SYS(read(from, &byte, 1)) == 1) {
        check_hidden();
        CHECK_EQ(write(to, &byte, 1), 1, "write");
    }
    _exit(4);
}

__attribute__((noreturn)) static void ask_on(void)
{
    for (;;)
        check_hidden();
}

int main(void)
{
    guest_begin();
    int there[2], back[2];
    SYS(pipe(there));
    SYS(pipe(back));
    pid_t waits = SYS(fork());
    if (waits == 0) {
        SYS(close(there[1]));
        hide();
        answer(there[0], back[1]);
    }
    pid_t asks = SYS(fork());
    if (asks == 0) {
        SYS(close(there[1]));
        hide();
        ask_on();
    }
    unsigned char byte = 0;
    guest_ready();
    do {
        unsigned char got = 0;
        byte++;
        CHECK_EQ(write(there[1], &byte, 1), 1, "write");
        CHECK_EQ(SYS(read(back[0], &got, 1)), 1, "read");
        CHECK_EQ(got, byte, "answer");
        CHECK_EQ(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 1, "PR_GET_DUMPABLE of the parent");
    } while (guest_running());
    SYS(close(there[1]));
    int status;
    SYS(waitpid(waits, &status, 0));
    CHECK_EQ(status, 4 << 8, "status of the child that waits");
    SYS(kill(asks, SIGKILL));
    SYS(waitpid(asks, &status, 0));
    CHECK_EQ(status, SIGKILL, "status of the other child");
    guest_success();
}
