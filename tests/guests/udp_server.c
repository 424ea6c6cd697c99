/* A server on UDP whose clients (udp_client, no part of the job) see no difference while it moves: each
 * datagram comes once, with its sender, and is answered by the address to which it was sent. The argument
 * is what the socket is bound to: `one` (127.0.0.1), `any4`, `any6` (clients of both families), `info`
 * (any, by IP_PKTINFO), or `group` (any, and a member of a multicast group). Before it ends it closes the
 * socket: the port is free then. */
#include "udp.h"

#define GROUP "239.255.77.9"

static unsigned char in[UDP_MOST], out[UDP_MOST];
static struct mmsghdr several[4];
static struct iovec pieces[COUNT(several)];
static union tcp_address senders[COUNT(several)];
static char controls[COUNT(several)][256];
static unsigned char small[COUNT(several)][2048];

/* By which address a datagram came. */
static int came_by(struct msghdr *message, struct in_pktinfo *info)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c))
        if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            memcpy(info, CMSG_DATA(c), sizeof(*info));
            return 1;
        }
    return 0;
}

/* Sends the datagram back behind a line with its sender. */
static void answer(int fd, const unsigned char *got, size_t size, union tcp_address *sender,
                   socklen_t len, const struct in_pktinfo *info)
{
    char name[64], control[CMSG_SPACE(sizeof(*info))] = {0};
    int n = snprintf((char *)out, 80, "%s\n", tcp_name(sender, name));
    if (size > sizeof(out) - (size_t)n)
        size = sizeof(out) - (size_t)n;
    memcpy(out + n, got, size);
    struct iovec piece = {out, (size_t)n + size};
    struct msghdr message = {.msg_name = sender, .msg_namelen = len, .msg_iov = &piece,
                             .msg_iovlen = 1};
    if (info) {
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = IPPROTO_IP;
        c->cmsg_type = IP_PKTINFO;
        c->cmsg_len = CMSG_LEN(sizeof(*info));
        struct in_pktinfo by = {.ipi_spec_dst = info->ipi_addr};
        memcpy(CMSG_DATA(c), &by, sizeof(by));
    }
    CHECK_EQ(SYS(sendmsg(fd, &message, 0)), (ssize_t)(n + (ssize_t)size), "length sent");
}

static void serve_one(int fd)
{
    union tcp_address sender = {.any = {0}};
    socklen_t len = sizeof(sender);
    ssize_t n = SYS(recvfrom(fd, in, sizeof(in), 0, &sender.any, &len));
    answer(fd, in, (size_t)n, &sender, len, NULL);
}

static void serve_several(int fd)
{
    for (size_t i = 0; i < COUNT(several); i++) {
        pieces[i] = (struct iovec){small[i], sizeof(small[i])};
        several[i].msg_hdr = (struct msghdr){
            .msg_name = &senders[i], .msg_namelen = sizeof(senders[i]), .msg_iov = &pieces[i],
            .msg_iovlen = 1, .msg_control = controls[i], .msg_controllen = sizeof(controls[i])};
    }
    int got = SYS(recvmmsg(fd, several, COUNT(several), MSG_WAITFORONE, NULL));
    for (int i = 0; i < got; i++) {
        struct in_pktinfo info;
        struct msghdr *message = &several[i].msg_hdr;
        CHECK(!(message->msg_flags & MSG_TRUNC), "a datagram of another's length");
        CHECK(came_by(message, &info), "IP_PKTINFO tells nothing");
        answer(fd, small[i], several[i].msg_len, &senders[i], message->msg_namelen, &info);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "one";
    int one = 1, zero = 0, with_info = !strcmp(what, "info");
    char text[32];
    union tcp_address own = {.any = {0}};
    socklen_t len = sizeof(own.v4);
    guest_begin();
    int fd = udp_socket(strcmp(what, "any6") ? AF_INET : AF_INET6);
    if (!strcmp(what, "one")) {
        len = tcp_loopback(&own, "4", 0);
    } else if (!strcmp(what, "any6")) {
        own.v6.sin6_family = AF_INET6;
        len = sizeof(own.v6);
        SYS(setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero)));
    } else {
        own.v4.sin_family = AF_INET;
    }
    if (with_info)
        SYS(setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof(one)));
    if (!strcmp(what, "group")) {
        struct ip_mreq member = {.imr_interface.s_addr = htonl(INADDR_LOOPBACK)};
        CHECK(inet_pton(AF_INET, GROUP, &member.imr_multiaddr) == 1, "inet_pton");
        SYS(setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &member, sizeof(member)));
    }
    SYS(bind(fd, &own.any, len));
    SYS(getsockname(fd, &own.any, &len));
    snprintf(text, sizeof(text), ".%s", what);
    tcp_say_file(text, 1);
    tcp_say_file("", ntohs(own.v4.sin_port));
    guest_ready();
    union tcp_address now;
    /* Who has asked gets an answer. */
    for (int ending = 0; !ending || !udp_has_word(".quiet");) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (!ending && !guest_running()) {
            ending = 1;
            tcp_say_file(".end", 1);
        }
        if (!SYS(poll(&p, 1, 20)))
            continue;
        if (with_info)
            serve_several(fd);
        else
            serve_one(fd);
        memset(&now, 0, sizeof(now));
        len = sizeof(now);
        SYS(getsockname(fd, &now.any, &len));
        CHECK(!memcmp(&now, &own, len), "getsockname tells another address");
    }
    SYS(close(fd));
    tcp_say_file(".closed", 1);
    tcp_await_file(".free", text, sizeof(text));
    guest_success();
}
