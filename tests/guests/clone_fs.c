/* Two processes with one working directory and umask (CLONE_FS of clone(2)): chdir(2) and umask(2)
 * of one are the other one's too. A child of fork(2) keeps its own. */
#include "shared.h"

static const char *const PLACES[] = {"/", "/tmp", "/usr", "/proc"};

static void is_in(const char *wanted)
{
    char now[256];
    CHECK(getcwd(now, sizeof(now)), "getcwd: %s", strerror(errno));
    CHECK(!strcmp(now, wanted), "in %s instead of %s", now, wanted);
}

static const char *place(long turn)
{
    return PLACES[(unsigned long)turn % COUNT(PLACES)];
}

static mode_t mask(long turn)
{
    return (mode_t)(turn & 0777);
}

static void go(long turn)
{
    SYS(chdir(place(turn)));
    umask(mask(turn));
}

static void check(long turn)
{
    char text[16];
    is_in(place(turn));
    guest_proc_status("Umask", text, sizeof(text));
    CHECK_EQ(strtoul(text, NULL, 8), mask(turn), "umask");
}

static void partner(long turn)
{
    check(2 * turn);
    go(2 * turn + 1);
}

static void witness(long turn)
{
    (void)turn;
    is_in("/dev");
    CHECK_EQ(umask(0123), 0123, "umask");
}

int main(void)
{
    guest_begin();
    shared_begin();
    SYS(chdir("/dev"));
    umask(0123);
    pid_t apart = shared_witness(witness);
    pid_t other = shared_partner(CLONE_FS, partner);
    long n = 1;
    go(2 * n);
    shared_turn(n);
    guest_ready();
    do {
        check(2 * n + 1);
        n++;
        go(2 * n);
        shared_turn(n);
    } while (guest_running());
    check(2 * n + 1);
    shared_end(other, apart);
    guest_success();
}
