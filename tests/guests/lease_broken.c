/* A write lease whose holder gives it back when it is told to, and takes it again as soon as it
 * can. It ends well only if it has been told. */
#include "guest.h"

int main(void)
{
    guest_begin();
    char path[256];
    int fd = SYS(open(guest_path(path, sizeof(path), "leased"), O_RDWR | O_CREAT, 0644));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    SYS(sigprocmask(SIG_BLOCK, &set, NULL));
    if (fcntl(fd, F_SETLEASE, F_WRLCK) != 0)
        skip("no leases here");
    int told = 0;
    guest_ready();
    do {
        int lease = SYS(fcntl(fd, F_GETLEASE));
        if (sigtimedwait(&set, NULL, &(struct timespec){0, 0}) != SIGIO) {
            CHECK_EQ(errno, EAGAIN, "sigtimedwait");
            CHECK_EQ(lease, F_WRLCK, "the lease");
            continue;
        }
        told++;
        CHECK_EQ(SYS(fcntl(fd, F_GETLEASE)), F_RDLCK, "what the reader waits for");
        SYS(fcntl(fd, F_SETLEASE, F_UNLCK));
        while (fcntl(fd, F_SETLEASE, F_WRLCK) != 0)
            CHECK_EQ(errno, EAGAIN, "taking the lease");
    } while (guest_running());
    CHECK(told, "nobody has broken the lease");
    guest_success();
}
