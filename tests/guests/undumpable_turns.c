/* Who is not dumpable: a child of one that is not is not either, until it makes itself so or executes
 * a program; what one does is no other's matter. */
#include "crew.h"
#include <sys/prctl.h>

static int dumpable(void) { return SYS(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)); }

static void set(int value) { SYS(prctl(PR_SET_DUMPABLE, value, 0, 0, 0)); }

static long serve(int n, char question)
{
    (void)n;
    if (question == 'o')
        set(1);
    if (question == 'c')
        set(0);
    return dumpable();
}

static void child(const char *self)
{
    pid_t pid = SYS(fork());
    if (pid == 0) {
        CHECK_EQ(dumpable(), 0, "a child of one that is not dumpable");
        set(1);
        CHECK_EQ(dumpable(), 1, "a child that is dumpable again");
        set(0);
        execl("/proc/self/exe", self, "executed", (char *)NULL);
        _exit(1);
    }
    int status;
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 7 << 8, "status of the child");
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return dumpable() == 1 ? 7 : 8;
    guest_begin();
    set(0);
    struct mate mate = crew_start(0, serve);
    guest_ready();
    int open = 0;
    do {
        CHECK_EQ(dumpable(), 0, "the first process");
        CHECK_EQ(crew_ask(&mate, 'q'), open, "the child, as it was left");
        open = !open;
        CHECK_EQ(crew_ask(&mate, open ? 'o' : 'c'), open, "the child");
        CHECK_EQ(prctl(PR_SET_DUMPABLE, 3, 0, 0, 0), -1, "a value that there is not");
        child(argv[0]);
    } while (guest_running());
    crew_end(&mate);
    guest_success();
}
