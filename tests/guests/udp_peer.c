/* Echoes datagrams, no part of a job; a struct udp_request has many sent instead. */
#include "udp.h"

int main(void)
{
    static unsigned char in[UDP_MOST], out[UDP_MOST];
    int zero = 0;
    union tcp_address own = {.any = {0}}, sender;
    guest_begin();
    int fd = udp_socket(AF_INET6), other = udp_socket(AF_INET6);
    own.v6.sin6_family = AF_INET6;
    for (int *s = (int[]){fd, other, -1}; *s >= 0; s++) {
        SYS(setsockopt(*s, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)));
        own.v6.sin6_port = 0;
        socklen_t len = sizeof(own.v6);
        SYS(bind(*s, &own.any, len));
        SYS(getsockname(*s, &own.any, &len));
        tcp_say_file(*s == fd ? ".one" : ".other", ntohs(own.v6.sin6_port));
    }
    tcp_say_file("", 1);
    guest_ready();
    while (guest_running()) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = other, .events = POLLIN}};
        SYS(poll(p, 2, 10));
        for (int i = 0; i < 2; i++) {
            if (!(p[i].revents & POLLIN))
                continue;
            socklen_t len = sizeof(sender);
            ssize_t n = SYS(recvfrom(p[i].fd, in, sizeof(in), 0, &sender.any, &len));
            struct udp_request request = {0};
            if ((size_t)n == sizeof(request))
                memcpy(&request, in, sizeof(request));
            if (memcmp(request.word, UDP_REQUEST, sizeof(request.word))) {
                SYS(sendto(p[i].fd, in, (size_t)n, 0, &sender.any, len));
                continue;
            }
            for (uint32_t k = 0; k < request.count; k++) {
                size_t size = udp_fill(out, k, k % 3 ? k * 37 % (request.most + 1) : 0);
                SYS(sendto(k % 2 ? other : fd, out, size, 0, &sender.any, len));
            }
        }
    }
    guest_success();
}
