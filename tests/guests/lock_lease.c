/* A read lease: a writer is held off until the lease is given back, and its holder is told by a
 * signal with the descriptor. */
#include "guest.h"

enum { NUMBER = 37 };

static volatile sig_atomic_t told, told_fd;

static void on_break(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    told++;
    told_fd = info->si_fd;
}

int main(void)
{
    guest_begin();
    char path[256];
    int fd = SYS(open(guest_path(path, sizeof(path), "leased"), O_RDONLY | O_CREAT, 0600));
    SYS(dup2(fd, NUMBER));
    SYS(close(fd));
    struct sigaction act = {.sa_sigaction = on_break, .sa_flags = SA_SIGINFO | SA_RESTART};
    SYS(sigaction(SIGRTMIN + 1, &act, NULL));
    SYS(fcntl(NUMBER, F_SETSIG, SIGRTMIN + 1));
    SYS(fcntl(NUMBER, F_SETOWN, getpid()));
    if (fcntl(NUMBER, F_SETLEASE, F_RDLCK) != 0)
        skip("no leases here");
    guest_ready();
    int turns = 0;
    do {
        CHECK_EQ(SYS(fcntl(NUMBER, F_GETLEASE)), F_RDLCK, "the lease");
        if (++turns % 5)
            continue;
        int before = told;
        CHECK(open(path, O_WRONLY | O_NONBLOCK) == -1, "a writer was not held off");
        CHECK_EQ(errno, EWOULDBLOCK, "a writer");
        CHECK_EQ(told, before + 1, "signals");
        CHECK_EQ(told_fd, NUMBER, "descriptor of the signal");
        SYS(fcntl(NUMBER, F_SETLEASE, F_UNLCK));
        int writer = SYS(open(path, O_WRONLY | O_NONBLOCK));
        SYS(close(writer));
        /* The end of a lease forgets them. */
        SYS(fcntl(NUMBER, F_SETSIG, SIGRTMIN + 1));
        SYS(fcntl(NUMBER, F_SETOWN, getpid()));
        /* Who looks at descriptors may hold the writer's for an instant. */
        while (fcntl(NUMBER, F_SETLEASE, F_RDLCK) != 0)
            CHECK_EQ(errno, EAGAIN, "taking the lease again");
    } while (guest_running());
    guest_success();
}
