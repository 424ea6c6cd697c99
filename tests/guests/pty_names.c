/* Names of ptys by all ways to them, of ptys from before a move and of ones that are made after it:
 * numbers stay, and no two ptys have the same. */
#include "pty.h"
#include <sys/stat.h>

enum { KEPT = 6 };

static void check_link(const char *path, const char *want)
{
    char got[64] = "", small[12];
    ssize_t n = SYS(readlink(path, got, sizeof(got) - 1));
    CHECK(!strcmp(got, want) && n == (ssize_t)strlen(want), "%s leads to %s, not %s", path, got,
          want);
    n = SYS(readlink(path, small, sizeof(small)));
    size_t len = strlen(want) < sizeof(small) ? strlen(want) : sizeof(small);
    CHECK(n == (ssize_t)len && !memcmp(small, want, len), "%s in a small buffer: %.*s", path,
          (int)n, small);
}

/* What readlink(2) and its relatives say. */
static void check_links(const struct pty *pty, const char *want)
{
    char path[64], at[16], got[64] = "";
    snprintf(path, sizeof(path), "/proc/self/fd/%d", pty->slave);
    check_link(path, want);
    snprintf(path, sizeof(path), "/proc/thread-self/fd/%d", pty->slave);
    check_link(path, want);
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", getpid(), pty->slave);
    check_link(path, want);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/fd/%d", getpid(), getpid(), pty->slave);
    check_link(path, want);
    snprintf(path, sizeof(path), "/dev/fd/%d", pty->slave);
    check_link(path, want);
    int dir = SYS(open("/proc/self/fd", O_RDONLY | O_DIRECTORY));
    snprintf(at, sizeof(at), "%d", pty->slave);
    SYS(readlinkat(dir, at, got, sizeof(got) - 1));
    CHECK(!strcmp(got, want), "by a directory: %s, not %s", got, want);
    SYS(close(dir));
}

/* The name leads to the pty. */
static void check_paths(const struct pty *pty, const char *name)
{
    char at[16];
    struct stat own;
    snprintf(at, sizeof(at), "%d", pty->number);
    int dir = SYS(open("/dev/pts", O_RDONLY | O_DIRECTORY)), dev = SYS(open("/dev", O_PATH));
    CHECK(pty_has_name(pty->slave, dir, at), "%s in /dev/pts is another one", at);
    CHECK(pty_has_name(pty->slave, AT_FDCWD, name), "%s is another one", name);
    SYS(access(name, R_OK | W_OK));
    SYS(chmod(name, 0622));
    SYS(chown(name, (uid_t)-1, (gid_t)-1));
    SYS(fstat(pty->slave, &own));
    CHECK_EQ(own.st_mode & 0777, 0622, "permissions by name");
    snprintf(at, sizeof(at), "pts/%d", pty->number);
    int again = SYS(openat(dev, at, O_RDWR | O_NOCTTY));
    pty_say(again, "by name");
    pty_expect(pty->master, "by name", 7, "what was written by name");
    SYS(close(again));
    SYS(close(dev));
    SYS(close(dir));
}

static void check(const struct pty *pty)
{
    char name[32];
    int number = -1, again;
    snprintf(name, sizeof(name), "/dev/pts/%d", pty->number);
    SYS(ioctl(pty->master, TIOCGPTN, &number));
    CHECK_EQ(number, pty->number, "number of the pty");
    check_links(pty, name);
    check_paths(pty, name);
    again = SYS(ioctl(pty->master, TIOCGPTPEER, O_RDWR | O_NOCTTY));
    pty_say(again, "by its master");
    pty_expect(pty->master, "by its master", 13, "what was written by the master");
    SYS(close(again));
}

/* A pty whose number is told by the name of its slave. */
static struct pty fresh(void)
{
    struct pty pty = {.master = SYS(posix_openpt(O_RDWR | O_NOCTTY))};
    SYS(unlockpt(pty.master));
    pty.slave = SYS(ioctl(pty.master, TIOCGPTPEER, O_RDWR | O_NOCTTY));
    pty_raw(pty.slave);
    char name[64];
    pty_name(pty.slave, name, sizeof(name));
    CHECK(sscanf(name, "/dev/pts/%d", &pty.number) == 1, "the slave's name is %s", name);
    return pty;
}

int main(void)
{
    guest_begin();
    struct pty all[KEPT];
    for (int i = 0; i < KEPT; i++) {
        all[i] = pty_open();
        pty_raw(all[i].slave);
    }
    guest_ready();
    int turn = 0;
    do {
        struct pty *one = &all[turn++ % KEPT];
        char want[64], path[64];
        for (int i = 0; i < KEPT; i++)
            check(&all[i]);
        /* A slave without its master has lost its name, but keeps its number. */
        SYS(close(one->master));
        /* Who looks at the program may have the master a moment longer. */
        while (!(pty_poll(one->slave, POLLIN) & POLLHUP))
            usleep(100);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", one->slave);
        snprintf(want, sizeof(want), "/dev/pts/%d (deleted)", one->number);
        check_link(path, want);
        guest_running();
        check_link(path, want);
        struct pty next = turn % 2 ? fresh() : pty_open();
        pty_raw(next.slave);
        check_link(path, want);
        CHECK(next.number != one->number, "a number that is in use was given: %d", next.number);
        SYS(close(one->slave));
        *one = next;
        for (int i = 0; i < KEPT; i++)
            for (int j = 0; j < i; j++)
                CHECK(all[i].number != all[j].number, "two ptys with number %d", all[i].number);
    } while (guest_running());
    guest_success();
}
