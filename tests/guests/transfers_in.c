/* Calls that wait until there are many bytes: see transfers.h. */
#include "transfers.h"
#include <sys/random.h>

enum { LEAST = 200, LEAST_OF_TERMINAL = 50, LARGE = 4 << 20 };

static void open_low(struct flow *flow)
{
    int low = LEAST;
    open_pair(flow);
    SYS(setsockopt(flow->ends[0], SOL_SOCKET, SO_RCVLOWAT, &low, sizeof(low)));
}

static void open_terminal(struct flow *flow)
{
    open_pty(flow, LEAST_OF_TERMINAL);
}

static void open_timed(struct flow *flow)
{
    struct timeval timeout = {.tv_sec = 100};
    open_pair(flow);
    SYS(setsockopt(flow->ends[0], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)));
}

static void open_zero(struct flow *flow)
{
    flow->ends[0] = SYS(open("/dev/zero", O_RDONLY));
}

static void open_random(struct flow *flow)
{
    flow->ends[0] = SYS(open("/dev/urandom", O_RDONLY));
}

static void open_nothing(struct flow *flow)
{
    (void)flow;
}

static ssize_t call_recv(struct flow *flow)
{
    return recv(flow->ends[0], flow->buffer, flow->len, MSG_WAITALL);
}

static ssize_t call_recvmsg(struct flow *flow)
{
    struct msghdr message = {.msg_iov = flow->pieces, .msg_iovlen = PIECES};
    return recvmsg(flow->ends[0], &message, MSG_WAITALL);
}

static ssize_t call_plain_recv(struct flow *flow)
{
    return recv(flow->ends[0], flow->buffer, flow->len, 0);
}

static ssize_t call_read(struct flow *flow)
{
    return read(flow->ends[0], flow->buffer, flow->len);
}

static ssize_t call_readv(struct flow *flow)
{
    return readv(flow->ends[0], flow->pieces, PIECES);
}

static ssize_t call_pread(struct flow *flow)
{
    return pread(flow->ends[0], flow->buffer, flow->len, 4096);
}

static ssize_t call_getrandom(struct flow *flow)
{
    return getrandom(flow->buffer, flow->len, 0);
}

static struct flow flows[] = {
    {.name = "recv with MSG_WAITALL", .open = open_pair, .call = call_recv, .len = 3000},
    {.name = "recvmsg with MSG_WAITALL", .open = open_pair, .call = call_recvmsg, .len = 3000},
    {.name = "read with SO_RCVLOWAT", .open = open_low, .call = call_read, .len = 3000, .least = LEAST},
    {.name = "recv with SO_RCVTIMEO", .open = open_timed, .call = call_plain_recv, .len = 100, .least = 1},
    {.name = "read with VMIN", .open = open_terminal, .call = call_read, .len = 60,
     .least = LEAST_OF_TERMINAL, .in_turns = 1},
    {.name = "read of /dev/zero", .open = open_zero, .call = call_read, .len = LARGE},
    {.name = "readv of /dev/zero", .open = open_zero, .call = call_readv, .len = LARGE},
    {.name = "pread of /dev/zero", .open = open_zero, .call = call_pread, .len = LARGE},
    {.name = "read of /dev/urandom", .open = open_random, .call = call_read, .len = LARGE},
    {.name = "getrandom", .open = open_nothing, .call = call_getrandom, .len = LARGE},
};

__attribute__((noreturn)) static void *read_all(void *arg)
{
    struct flow *flow = arg;
    __atomic_store_n(&flow->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
    for (;;) {
        uint64_t place = flow->passed;
        checked_call(flow);
        if (flow->ends[1] > 0)
            compare(flow, flow->buffer, (size_t)(flow->passed - place), place);
        else
            breathe();
    }
}

__attribute__((noreturn)) static void *write_slowly(void *arg)
{
    struct flow *flow = arg;
    char room[50];
    for (uint64_t place = 0;;) {
        size_t len = 1 + guest_mix(place) % sizeof(room);
        fill(room, len, place);
        CHECK_EQ(write(flow->ends[1], room, len), len, flow->name);
        place += len;
        /* A terminal is never full: what is in it has to fit at the target. */
        while (flow->in_turns && place > __atomic_load_n(&flow->passed, __ATOMIC_SEQ_CST) + 500)
            breathe();
        breathe();
    }
}

int main(void)
{
    run(flows, COUNT(flows), read_all, write_slowly);
}
