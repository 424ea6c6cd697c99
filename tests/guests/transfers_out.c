/* Calls that write more than there is room for: see transfers.h. */
#include "transfers.h"
#include <sys/sendfile.h>

static void open_pipe(struct flow *flow)
{
    int ends[2];
    SYS(pipe(ends));
    flow->ends[0] = ends[1];
    flow->ends[1] = ends[0];
}

static void open_fifo(struct flow *flow)
{
    char path[256];
    guest_path(path, sizeof(path), "fifo");
    SYS(mkfifo(path, 0600));
    flow->ends[1] = SYS(open(path, O_RDONLY | O_NONBLOCK));
    flow->ends[0] = SYS(open(path, O_WRONLY));
    SYS(fcntl(flow->ends[1], F_SETFL, 0));
}

static void open_terminal(struct flow *flow)
{
    open_pty(flow, 1);
}

static int content = -1;

static void open_content(struct flow *flow)
{
    char path[256];
    open_pair(flow);
    content = SYS(open(guest_path(path, sizeof(path), "content"), O_RDWR | O_CREAT, 0600));
    /* Its pages themselves go into the socket: they stay what they are. */
    fill(flow->buffer, flow->len, 0);
    CHECK_EQ(write(content, flow->buffer, flow->len), flow->len, "write");
}

static ssize_t call_write(struct flow *flow)
{
    return write(flow->ends[0], flow->buffer, flow->len);
}

static ssize_t call_writev(struct flow *flow)
{
    return writev(flow->ends[0], flow->pieces, PIECES);
}

static ssize_t call_pwritev2(struct flow *flow)
{
    return pwritev2(flow->ends[0], flow->pieces, PIECES, -1, 0);
}

static ssize_t call_send(struct flow *flow)
{
    return send(flow->ends[0], flow->buffer, flow->len, 0);
}

/* With a descriptor, which comes once. */
static ssize_t call_sendmsg(struct flow *flow)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.head = {.cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS,
                          .cmsg_len = CMSG_LEN(sizeof(int))}};
    memcpy(CMSG_DATA(&control.head), &flow->ends[0], sizeof(int));
    struct msghdr message = {.msg_iov = flow->pieces,
                             .msg_iovlen = PIECES,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    return sendmsg(flow->ends[0], &message, MSG_NOSIGNAL);
}

static ssize_t call_sendfile(struct flow *flow)
{
    off_t from = 0;
    ssize_t n = sendfile(flow->ends[0], content, &from, flow->len);
    CHECK(from == n, "sendfile: at %lld after %zd", (long long)from, n);
    return n;
}

static struct flow flows[] = {
    {.name = "write to a pipe", .open = open_pipe, .call = call_write},
    {.name = "writev to a pipe", .open = open_pipe, .call = call_writev},
    {.name = "pwritev2 to a FIFO", .open = open_fifo, .call = call_pwritev2},
    {.name = "write to a terminal", .open = open_terminal, .call = call_write, .len = 30000,
     .in_turns = 1},
    {.name = "write to a socket", .open = open_pair, .call = call_write},
    {.name = "writev to a socket", .open = open_pair, .call = call_writev},
    {.name = "send", .open = open_pair, .call = call_send},
    {.name = "sendmsg", .open = open_pair, .call = call_sendmsg},
    {.name = "sendfile", .open = open_content, .call = call_sendfile},
};

__attribute__((noreturn)) static void *write_all(void *arg)
{
    struct flow *flow = arg;
    __atomic_store_n(&flow->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    for (;;) {
        fill(flow->buffer, flow->len, flow->passed);
        checked_call(flow);
        while (flow->in_turns && __atomic_load_n(&flow->taken, __ATOMIC_SEQ_CST) < flow->passed)
            breathe();
    }
}

/* As read(2); counts descriptors that come along. */
static ssize_t receive(const struct flow *flow, char *to, size_t len, uint64_t *descriptors)
{
    if (flow->call != call_sendmsg)
        return read(flow->ends[1], to, len);
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec piece = {to, len};
    struct msghdr message = {.msg_iov = &piece,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(flow->ends[1], &message, MSG_CMSG_CLOEXEC);
    if (n > 0 && CMSG_FIRSTHDR(&message)) {
        int fd;
        memcpy(&fd, CMSG_DATA(&control.head), sizeof(int));
        SYS(close(fd));
        ++*descriptors;
    }
    return n;
}

__attribute__((noreturn)) static void *read_slowly(void *arg)
{
    struct flow *flow = arg;
    static __thread char room[20000];
    uint64_t place = 0, descriptors = 0;
    for (;;) {
        size_t want = 1 + guest_mix(place) % sizeof(room);
        ssize_t n = SYS(receive(flow, room, want, &descriptors));
        CHECK(n > 0, "%s: an end", flow->name);
        compare(flow, room, (size_t)n, place);
        place += (size_t)n;
        __atomic_store_n(&flow->taken, place, __ATOMIC_SEQ_CST);
        if (flow->call == call_sendmsg)
            CHECK(descriptors == (place + LEN - 1) / LEN, "%llu descriptors with %llu bytes",
                  (unsigned long long)descriptors, (unsigned long long)place);
        breathe();
    }
}

int main(void)
{
    run(flows, COUNT(flows), write_all, read_slowly);
}
