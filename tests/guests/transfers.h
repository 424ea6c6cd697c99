/* Threads that transfer many bytes by one call, and threads at the other ends that are slow: a call
 * that waits for all of its bytes never answers fewer, and no byte is lost or comes twice. An ignored
 * signal changes nothing. */
#ifndef TRANSFERS_H
#define TRANSFERS_H
#include "guest.h"
#include <pthread.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <termios.h>

enum { LEN = 300000, PIECES = 3 };

struct flow {
    const char *name;
    /* Gives the two ends: of the thread that is watched, and of the other one. */
    void (*open)(struct flow *);
    /* The call that is watched, with `buffer`. */
    ssize_t (*call)(struct flow *);
    /* Of how many bytes; it may answer more than `least`. */
    size_t len, least;
    int ends[2];
    char *buffer;
    /* Pieces of the buffer, in memory that cannot be written to. */
    struct iovec *pieces;
    uint64_t passed;
    /* What the other end has read, for a call that waits for it before the next. */
    uint64_t taken;
    int in_turns;
    pid_t tid;
};

static inline char byte_at(uint64_t place)
{
    place %= LEN;
    return (char)(place * 7 + place / 251);
}

static inline void fill(char *to, size_t len, uint64_t place)
{
    for (size_t i = 0; i < len; i++)
        to[i] = byte_at(place + i);
}

static inline void compare(const struct flow *flow, const char *got, size_t len, uint64_t place)
{
    for (size_t i = 0; i < len; i++)
        CHECK(got[i] == byte_at(place + i), "%s: byte %llu is wrong", flow->name,
              (unsigned long long)(place + i));
}

static inline void breathe(void)
{
    struct timespec nap = {.tv_nsec = 300000};
    nanosleep(&nap, NULL);
}

static inline void open_pair(struct flow *flow)
{
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, flow->ends));
}

/* The watched end is the slave, or the master. */
static inline void open_pty(struct flow *flow, int least)
{
    int master = SYS(posix_openpt(O_RDWR | O_NOCTTY));
    SYS(grantpt(master));
    SYS(unlockpt(master));
    char name[64];
    CHECK_EQ(ptsname_r(master, name, sizeof(name)), 0, "ptsname");
    int slave = SYS(open(name, O_RDWR | O_NOCTTY));
    struct termios modes;
    SYS(tcgetattr(slave, &modes));
    cfmakeraw(&modes);
    modes.c_cc[VMIN] = (cc_t)least;
    modes.c_cc[VTIME] = 0;
    SYS(tcsetattr(slave, TCSANOW, &modes));
    flow->ends[0] = slave;
    flow->ends[1] = master;
}

static inline void *map(size_t len)
{
    void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    return at;
}

static inline void prepare(struct flow *flow)
{
    if (!flow->len)
        flow->len = LEN;
    if (!flow->least)
        flow->least = flow->len;
    flow->buffer = map(flow->len);
    flow->pieces = map(4096);
    size_t third = flow->len / PIECES;
    for (size_t i = 0; i < PIECES; i++)
        flow->pieces[i] = (struct iovec){flow->buffer + i * third,
                                         i + 1 < PIECES ? third : flow->len - i * third};
    SYS(mprotect(flow->pieces, 4096, PROT_READ));
    flow->open(flow);
}

static inline void checked_call(struct flow *flow)
{
    ssize_t n = flow->call(flow);
    CHECK(n >= (ssize_t)flow->least && n <= (ssize_t)flow->len, "%s of %zu bytes: %zd (%s)", flow->name,
          flow->len, n, n < 0 ? strerror(errno) : "too few");
    flow->passed += (uint64_t)n;
}

/* Runs the threads of all flows. */
static inline void run(struct flow *flows, size_t count, void *(*watched)(void *), void *(*other)(void *))
{
    guest_begin();
    for (size_t i = 0; i < count; i++)
        prepare(&flows[i]);
    for (size_t i = 0; i < count; i++) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, watched, &flows[i]), 0, "pthread_create");
        if (flows[i].ends[1] > 0)
            CHECK_EQ(pthread_create(&thread, NULL, other, &flows[i]), 0, "pthread_create");
    }
    guest_ready();
    while (guest_running())
        for (size_t i = 0; i < count; i++) {
            pid_t tid = __atomic_load_n(&flows[i].tid, __ATOMIC_SEQ_CST);
            if (tid)
                SYS(syscall(SYS_tgkill, getpid(), tid, SIGWINCH));
        }
    guest_success();
}
#endif
