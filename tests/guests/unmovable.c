/* Holds a netlink socket: a kernel object of this host that cannot move. */
#include "guest.h"
#include <sys/socket.h>

int main(void)
{
    guest_begin();
    int fd = SYS(socket(AF_NETLINK, SOCK_RAW, 0));
    guest_ready();
    do
        CHECK(fcntl(fd, F_GETFD) == 0, "the socket is gone");
    while (guest_running());
    guest_success();
}
