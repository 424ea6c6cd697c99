/* personality(2) of each thread and each process, no_new_privs, timer slack. */
#include "each.h"
#include <sys/personality.h>
#include <sys/prctl.h>

static const unsigned long PERSONALITIES[] = {0, ADDR_NO_RANDOMIZE, UNAME26 | SHORT_INODE, ADDR_COMPAT_LAYOUT};
static const long SLACKS[] = {50000, 1, 7000000, 123456789};

static void setup(int n)
{
    SYS(personality(PERSONALITIES[n]));
    SYS(prctl(PR_SET_TIMERSLACK, SLACKS[n]));
    if (n % 2)
        SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

static int had_no_new_privs;

static void check(int n)
{
    CHECK_EQ(personality(0xffffffff), (long)PERSONALITIES[n], "personality");
    CHECK_EQ(prctl(PR_GET_TIMERSLACK), SLACKS[n], "timer slack");
    CHECK_EQ(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), had_no_new_privs || n % 2, "no_new_privs");
}

int main(void)
{
    guest_begin();
    had_no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    each_hold(COUNT(SLACKS), 1, setup, check);
    guest_success();
}
