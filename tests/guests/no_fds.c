/* A process without standard descriptors: 0, 1 and 2 are closed and stay so. */
#include "guest.h"

int main(void)
{
    guest_begin();
    int out = SYS(fcntl(1, F_DUPFD, 50));
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    guest_ready_quietly();
    do
        for (int fd = 0; fd < 3; fd++)
            if (fcntl(fd, F_GETFD) != -1)
                guest_status("FAIL"), _exit(1);
    while (guest_running());
    if (write(out, "EXIT-SUCCESS\n", 13) != 13)
        _exit(1);
    guest_success_quietly();
}
