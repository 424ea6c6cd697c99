/* Write leases: everybody who opens the file is held off until the lease is given back, and its
 * holder is told by a signal; the descriptor with its duplicate, position and flags is what it
 * was. */
#include "guest.h"

enum { NUMBER = 37, OTHER = 38, READER = 39 };

static volatile sig_atomic_t told, told_fd;

static void on_break(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    told++;
    told_fd = info->si_fd;
}

static void open_as(const char *path, int flags, int number)
{
    int fd = SYS(open(path, flags | O_CREAT, 0600));
    SYS(dup2(fd, number));
    SYS(close(fd));
}

/* The end of a lease forgets whom it told. */
static void lease(int fd)
{
    SYS(fcntl(fd, F_SETSIG, SIGRTMIN + 1));
    SYS(fcntl(fd, F_SETOWN, getpid()));
    /* Who looks at descriptors may hold another one of the file for an instant. */
    while (fcntl(fd, F_SETLEASE, F_WRLCK) != 0)
        CHECK_EQ(errno, EAGAIN, "taking the lease");
}

static void check(int fd, const char *path)
{
    CHECK_EQ(SYS(fcntl(fd, F_GETLEASE)), F_WRLCK, "the lease");
    int before = told;
    CHECK(open(path, O_RDONLY | O_NONBLOCK) == -1, "a reader was not held off");
    CHECK_EQ(errno, EWOULDBLOCK, "a reader");
    CHECK_EQ(told, before + 1, "signals");
    CHECK_EQ(told_fd, fd, "descriptor of the signal");
    CHECK_EQ(SYS(fcntl(fd, F_GETLEASE)), F_RDLCK, "what the reader waits for");
    SYS(fcntl(fd, F_SETLEASE, F_UNLCK));
    int reader = SYS(open(path, O_RDONLY | O_NONBLOCK));
    SYS(close(reader));
    lease(fd);
}

int main(void)
{
    guest_begin();
    char path[256], only_read[256];
    open_as(guest_path(path, sizeof(path), "leased"), O_RDWR | O_APPEND, NUMBER);
    SYS(fcntl(NUMBER, F_DUPFD_CLOEXEC, OTHER));
    open_as(guest_path(only_read, sizeof(only_read), "read"), O_RDONLY | O_NONBLOCK, READER);
    CHECK_EQ(write(OTHER, "0123456789", 10), 10, "write");
    SYS(lseek(NUMBER, 4, SEEK_SET));
    struct sigaction act = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART};
    SYS(sigaction(SIGRTMIN + 1, &act, NULL));
    if (fcntl(NUMBER, F_SETLEASE, F_WRLCK) != 0)
        skip("no leases here");
    lease(NUMBER);
    lease(READER);
    guest_ready();
    unsigned turns = 0;
    do {
        CHECK_EQ(SYS(fcntl(NUMBER, F_GETLEASE)), F_WRLCK, "the first lease");
        CHECK_EQ(SYS(fcntl(READER, F_GETLEASE)), F_WRLCK, "the second lease");
        CHECK_EQ(SYS(fcntl(NUMBER, F_GETFL)) & (O_ACCMODE | O_APPEND), O_RDWR | O_APPEND, "flags");
        CHECK_EQ(SYS(fcntl(READER, F_GETFL)) & (O_ACCMODE | O_NONBLOCK), O_NONBLOCK, "flags");
        CHECK_EQ(SYS(fcntl(NUMBER, F_GETFD)), 0, "FD_CLOEXEC");
        CHECK_EQ(SYS(fcntl(OTHER, F_GETFD)), FD_CLOEXEC, "FD_CLOEXEC of the duplicate");
        CHECK_EQ(SYS(lseek(OTHER, 0, SEEK_CUR)), 4, "position");
        char byte = 0;
        CHECK_EQ(pread(OTHER, &byte, 1, 7), 1, "pread");
        CHECK_EQ(byte, '7', "content");
        if (++turns % 5 == 0)
            check(NUMBER, path);
        if (turns % 5 == 2)
            check(READER, only_read);
    } while (guest_running());
    guest_success();
}
