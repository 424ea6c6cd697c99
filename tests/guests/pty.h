/* Ptys: what the guests of this kind share. */
#ifndef PTY_H
#define PTY_H
#include "guest.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

struct pty {
    int master, slave, number;
};

/* A pty whose slave is opened by its name; it becomes no controlling terminal. */
static inline struct pty pty_open(void)
{
    struct pty pty;
    char name[64];
    pty.master = SYS(open("/dev/ptmx", O_RDWR | O_NOCTTY));
    SYS(ioctl(pty.master, TIOCGPTN, &pty.number));
    SYS(ioctl(pty.master, TIOCSPTLCK, &(int){0}));
    snprintf(name, sizeof(name), "/dev/pts/%d", pty.number);
    pty.slave = SYS(open(name, O_RDWR | O_NOCTTY));
    return pty;
}

static inline void pty_raw(int fd)
{
    struct termios modes;
    SYS(tcgetattr(fd, &modes));
    cfmakeraw(&modes);
    SYS(tcsetattr(fd, TCSANOW, &modes));
}

/* Does the name lead to this slave? Its device may be another one after a move: it is asked before and
 * after that of the name. */
static inline int pty_has_name(int slave, int dir, const char *name)
{
    struct stat named, before, after;
    do {
        SYS(fstat(slave, &before));
        if (fstatat(dir, name, &named, 0) == -1)
            return 0;
        SYS(fstat(slave, &after));
    } while (before.st_rdev != after.st_rdev || before.st_ino != after.st_ino);
    return named.st_ino == after.st_ino && named.st_rdev == after.st_rdev;
}

/* ttyname(3). The device of a file system is another one after a move, which it finds out when it is
 * in the middle of it. */
static inline void pty_name(int fd, char *name, size_t size)
{
    int tries = 3, error;
    while ((error = ttyname_r(fd, name, size)) == ENODEV && --tries)
        ;
    CHECK(!error, "ttyname: %s", strerror(error));
}

/* The slave has the name that its number says, and it is its own. */
static inline void pty_check_name(const struct pty *pty)
{
    char want[64], got[64];
    int number = -1;
    SYS(ioctl(pty->master, TIOCGPTN, &number));
    CHECK_EQ(number, pty->number, "number of the pty");
    snprintf(want, sizeof(want), "/dev/pts/%d", pty->number);
    pty_name(pty->slave, got, sizeof(got));
    CHECK(!strcmp(got, want), "the slave's name is %s, not %s", got, want);
    CHECK(pty_has_name(pty->slave, AT_FDCWD, want), "%s is another one", want);
}

/* Reads exactly these bytes. */
static inline void pty_expect(int fd, const void *want, size_t size, const char *what)
{
    static char got[1 << 16];
    size_t used = 0;
    CHECK(size <= sizeof(got), "too much at once");
    while (used < size) {
        ssize_t n = SYS(read(fd, got + used, size - used));
        CHECK(n > 0, "%s: end of file after %zu bytes of %zu", what, used, size);
        used += (size_t)n;
    }
    CHECK(!memcmp(got, want, size), "%s: got other bytes: %.*s", what, (int)size, got);
}

static inline void pty_say(int fd, const char *text)
{
    CHECK_EQ(SYS(write(fd, text, strlen(text))), strlen(text), "write to a pty");
}

/* What poll(2) says without waiting. */
static inline int pty_poll(int fd, short events)
{
    struct pollfd one = {.fd = fd, .events = events};
    SYS(poll(&one, 1, 0));
    return one.revents;
}
#endif
