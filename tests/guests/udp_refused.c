/* Nobody has the port to which a connected UDP socket sends: each time that is told, once. */
#include "udp.h"

int main(int argc, char **argv)
{
    const char *family = argc > 1 ? argv[1] : "4";
    char byte = 0;
    union tcp_address nobody;
    socklen_t len = tcp_loopback(&nobody, family, 1);
    guest_begin();
    int fd = udp_socket(nobody.any.sa_family);
    SYS(connect(fd, &nobody.any, len));
    guest_ready();
    do {
        CHECK_EQ(SYS(send(fd, &byte, 1, 0)), 1, "length sent");
        struct pollfd p = {.fd = fd, .events = POLLIN};
        CHECK_EQ(SYS(poll(&p, 1, UDP_PATIENCE)), 1, "a word in time");
        CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1, "something was received");
        CHECK_EQ(errno, ECONNREFUSED, "error");
        CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "a second error");
    } while (guest_running());
    guest_success();
}
