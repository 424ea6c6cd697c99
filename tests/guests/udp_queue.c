/* Datagrams that wait in a socket, empty ones and from two senders, are read after a move as before it:
 * each once, in their order, with their senders. Also the socket of a child that has a copy. */
#include "udp.h"
#include <sys/wait.h>

enum { WAITING = 40, MOST = 1200 };

static union tcp_address peers[2];

static void ask(int fd, uint32_t count, uint32_t most)
{
    struct udp_request request = {.word = UDP_REQUEST, .count = count, .most = most};
    SYS(sendto(fd, &request, sizeof(request), 0, &peers[0].any, sizeof(peers[0].v4)));
}

static void take(int fd, uint32_t k)
{
    static unsigned char got[UDP_MOST];
    union tcp_address sender = {.any = {0}};
    socklen_t len = sizeof(sender);
    int waiting = -1;
    size_t want = k % 3 ? k * 37 % (MOST + 1) : 0;
    udp_await(fd);
    SYS(ioctl(fd, FIONREAD, &waiting));
    CHECK_EQ(waiting, (int)(want + UDP_NUMBER), "FIONREAD");
    ssize_t n = SYS(recvfrom(fd, got, sizeof(got), MSG_DONTWAIT, &sender.any, &len));
    CHECK_EQ(udp_check(got, n, want), k, "number of a datagram");
    CHECK(!memcmp(&sender, &peers[k % 2], sizeof(sender.v4)), "another sender");
}

int main(void)
{
    char text[32], byte;
    int pair[2], answer[2];
    guest_begin();
    tcp_await_file("", text, sizeof(text));
    for (int i = 0; i < 2; i++) {
        tcp_await_file(i ? ".other" : ".one", text, sizeof(text));
        tcp_loopback(&peers[i], "4", (unsigned)atoi(text));
    }
    union tcp_address own;
    socklen_t len = tcp_loopback(&own, "4", 0);
    int fd = udp_socket(AF_INET);
    SYS(bind(fd, &own.any, len));
    SYS(pipe(pair));
    SYS(pipe(answer));
    pid_t child = SYS(fork());
    if (!child) {
        SYS(close(pair[1]));
        while (SYS(read(pair[0], &byte, 1)) == 1) {
            take(fd, (uint32_t)byte);
            SYS(write(answer[1], &byte, 1));
        }
        _exit(0);
    }
    SYS(close(pair[0]));
    guest_ready();
    do {
        ask(fd, WAITING, MOST);
        udp_await(fd);
        /* Some are read at once, the others after what may come between. */
        uint32_t k = 0;
        while (k < 7)
            take(fd, k++);
        for (int i = 0; i < 3; i++)
            guest_running();
        while (k < WAITING) {
            byte = (char)k++;
            SYS(write(pair[1], &byte, 1));
            CHECK_EQ(SYS(read(answer[0], &byte, 1)), 1, "the child's word");
        }
        CHECK(recv(fd, text, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "one too many");
    } while (guest_running());
    SYS(close(pair[1]));
    int status;
    SYS(waitpid(child, &status, 0));
    CHECK_EQ(status, 0, "status of the child");
    guest_success();
}
