/*
 * What the processes of a random tree do, each with what must come of it.
 */
#ifndef SOAK_H
#define SOAK_H
#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>

/* Shared by all processes. */
struct all {
    atomic_int alive;
    volatile int over;
    atomic_long done[32];
};

static struct all *all;

/* Who this process is, and a page that is its own. */
static struct {
    pid_t pid, parent, group, session;
    uint64_t seed, random;
    uint64_t page[PAGE / 8];
    int code;
} self;

static uint64_t draw(void) { return guest_mix(++self.random); }
static unsigned pick(unsigned below) { return (unsigned)(draw() % below); }

static void know_self(void)
{
    self.pid = getpid();
    self.parent = getppid();
    self.group = getpgrp();
    self.session = getsid(0);
}

static void be_born(uint64_t seed)
{
    self.seed = seed;
    self.random = guest_mix(seed);
    guest_fill(self.page, sizeof(self.page), seed);
    know_self();
}

static void check_self(void)
{
    CHECK_EQ(getpid(), self.pid, "getpid");
    CHECK_EQ(syscall(SYS_gettid), self.pid, "gettid");
    CHECK_EQ(getppid(), self.parent, "getppid");
    CHECK_EQ(getpgrp(), self.group, "getpgrp");
    CHECK_EQ(getsid(0), self.session, "getsid");
    guest_verify(self.page, sizeof(self.page), self.seed, "the page of a process");
}

/* Sleeps for a random time of at most MOST µs, not less than that. */
static void doze(unsigned most)
{
    struct timespec nap = {.tv_nsec = 1000L * (1 + pick(most))};
    uint64_t begin = clock_ns(CLOCK_MONOTONIC);
    CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL), 0, "clock_nanosleep");
    CHECK(clock_ns(CLOCK_MONOTONIC) - begin >= (uint64_t)nap.tv_nsec, "a sleep that was too short");
    check_self();
}

/* A child, and the code with which it must end. */
struct kid {
    pid_t pid;
    int code;
};

/* As fork(2): the child's pid is 0. */
static struct kid start(void)
{
    struct kid kid = {.code = 20 + (int)pick(100)};
    uint64_t seed = draw();
    kid.pid = SYS(fork());
    if (kid.pid == 0) {
        self.code = kid.code;
        be_born(seed);
    }
    return kid;
}

__attribute__((noreturn)) static void end_kid(void) { _exit(self.code); }

static void check_end(const struct kid *kid, int status)
{
    CHECK(WIFEXITED(status), "child %d: status %#x, not exit code %d", kid->pid, status, kid->code);
    CHECK_EQ(WEXITSTATUS(status), kid->code, "exit code of a child");
}

static void finish(const struct kid *kid)
{
    int status;
    CHECK_EQ(SYS(waitpid(kid->pid, &status, 0)), kid->pid, "waitpid");
    check_end(kid, status);
}

static int has_ended(const struct kid *kid)
{
    int status;
    pid_t ended = SYS(waitpid(kid->pid, &status, WNOHANG));
    if (ended)
        check_end(kid, status);
    return ended != 0;
}

static void *share(void)
{
    return SYS(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

static void unshare_page(void *page) { SYS(munmap(page, PAGE)); }

/* A path of this process's own. */
static const char *own_path(char *to, size_t size, const char *what)
{
    char suffix[64];
    snprintf(suffix, sizeof(suffix), "%s.%d", what, self.pid);
    return guest_path(to, size, suffix);
}

static void put(int fd, const void *from, size_t size)
{
    for (size_t done = 0; done < size;)
        done += (size_t)SYS(write(fd, (const char *)from + done, size - done));
}

/* False at the end of the stream. */
static int get(int fd, void *to, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = SYS(read(fd, (char *)to + done, size - done));
        CHECK(n > 0 || done == 0, "the stream ends in the middle of a message");
        if (n == 0)
            return 0;
        done += (size_t)n;
    }
    return 1;
}

struct message {
    uint64_t n, hops, words[64];
};

static void fill_message(struct message *m, uint64_t n, uint64_t seed)
{
    m->n = n;
    m->hops = 0;
    guest_fill(m->words, sizeof(m->words), seed + n);
}

static void check_message(const struct message *m, uint64_t n, uint64_t hops, uint64_t seed)
{
    CHECK_EQ(m->n, n, "number of a message");
    CHECK_EQ(m->hops, hops, "hops of a message");
    guest_verify(m->words, sizeof(m->words), seed + n, "a message");
}

/* Messages through one to three processes: all come, in their order. */
static void act_pipeline(void)
{
    enum { MOST = 3, AHEAD = 16 };
    int stages = 1 + (int)pick(MOST), count = 20 + (int)pick(60), pipes[MOST + 1][2];
    struct kid kids[MOST];
    uint64_t seed = draw();
    struct message m;
    for (int i = 0; i <= stages; i++)
        SYS(pipe(pipes[i]));
    for (int i = 0; i < stages; i++) {
        kids[i] = start();
        if (kids[i].pid)
            continue;
        for (int j = 0; j <= stages; j++) {
            if (j != i)
                close(pipes[j][0]);
            if (j != i + 1)
                close(pipes[j][1]);
        }
        for (uint64_t n = 0; get(pipes[i][0], &m, sizeof(m)); n++) {
            check_message(&m, n, (uint64_t)i, seed);
            m.hops++;
            put(pipes[i + 1][1], &m, sizeof(m));
            if (pick(4) == 0)
                doze(3000);
        }
        end_kid();
    }
    for (int i = 0; i <= stages; i++) {
        if (i > 0)
            close(pipes[i][1]);
        if (i < stages)
            close(pipes[i][0]);
    }
    int sent = 0, got = 0;
    while (got < count) {
        while (sent < count && sent < got + AHEAD) {
            fill_message(&m, (uint64_t)sent++, seed);
            put(pipes[0][1], &m, sizeof(m));
        }
        CHECK(get(pipes[stages][0], &m, sizeof(m)), "the pipeline ends early");
        check_message(&m, (uint64_t)got++, (uint64_t)stages, seed);
    }
    close(pipes[0][1]);
    CHECK(!get(pipes[stages][0], &m, sizeof(m)), "a message too many");
    close(pipes[stages][0]);
    for (int i = 0; i < stages; i++)
        finish(&kids[i]);
}

/* Sends a number, with a descriptor if FD is one. */
static void send_with(int to, uint64_t number, int fd)
{
    char room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {&number, sizeof(number)};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        msg.msg_control = room;
        msg.msg_controllen = sizeof(room);
        *CMSG_FIRSTHDR(&msg) =
            (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &fd, sizeof(fd));
    }
    CHECK_EQ(SYS(sendmsg(to, &msg, 0)), sizeof(number), "sendmsg");
}

static uint64_t receive_with(int from, int *fd)
{
    char room[CMSG_SPACE(sizeof(int))];
    uint64_t number = 0;
    struct iovec part = {&number, sizeof(number)};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    msg.msg_control = room;
    msg.msg_controllen = sizeof(room);
    CHECK_EQ(SYS(recvmsg(from, &msg, 0)), sizeof(number), "recvmsg");
    *fd = -1;
    if (CMSG_FIRSTHDR(&msg))
        memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(*fd));
    return number;
}

/* Numbers over a socket pair and back, some with the reading end of a pipe that holds one more. */
static void act_sockets(void)
{
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    int pair[2], count = 10 + (int)pick(40);
    SYS(socketpair(AF_UNIX, types[pick(3)], 0, pair));
    struct kid kid = start();
    if (kid.pid == 0) {
        for (int i = 0; i < count; i++) {
            int fd;
            uint64_t number = receive_with(pair[1], &fd), more = 0;
            if (fd >= 0) {
                CHECK(get(fd, &more, sizeof(more)), "nothing in a pipe that was sent");
                close(fd);
            }
            send_with(pair[1], number + more, -1);
            if (pick(3) == 0)
                doze(5000);
        }
        end_kid();
    }
    uint64_t wanted[64];
    for (int sent = 0, got = 0; got < count;) {
        if (sent < count && sent - got < 8) {
            uint64_t number = draw() >> 8, more = 0;
            int ends[2] = {-1, -1};
            if (pick(3) == 0) {
                SYS(pipe(ends));
                more = draw() >> 8;
                put(ends[1], &more, sizeof(more));
                close(ends[1]);
            }
            wanted[sent++] = number + more;
            send_with(pair[0], number, ends[0]);
            if (ends[0] >= 0)
                close(ends[0]);
            if (pick(2) == 0)
                continue;
        }
        int fd;
        CHECK_EQ(receive_with(pair[0], &fd), wanted[got], "an answer");
        CHECK_EQ(fd, -1, "a descriptor that nobody sent");
        got++;
    }
    finish(&kid);
    close(pair[0]);
    close(pair[1]);
}

struct critical {
    pthread_mutex_t mutex;
    volatile pid_t owner;
    volatile long count;
};

static void lock_by(int kind, int fd, struct critical *section, int on)
{
    struct flock record = {.l_type = on ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET};
    switch (kind) {
    case 0:
        SYS(flock(fd, on ? LOCK_EX : LOCK_UN));
        break;
    case 1:
        SYS(fcntl(fd, F_SETLKW, &record));
        break;
    case 2:
        SYS(fcntl(fd, F_OFD_SETLKW, &record));
        break;
    default:
        CHECK_EQ(on ? pthread_mutex_lock(&section->mutex) : pthread_mutex_unlock(&section->mutex),
                 0, "mutex");
    }
}

/* Three processes that exclude each other; the number of their turns is known. */
static void act_locks(void)
{
    enum { KIDS = 3 };
    char path[256];
    int kind = (int)pick(4), turns = 5 + (int)pick(20);
    struct critical *section = share();
    struct kid kids[KIDS];
    pthread_mutexattr_t shared;
    pthread_mutexattr_init(&shared);
    pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&section->mutex, &shared);
    close(SYS(open(own_path(path, sizeof(path), "lock"), O_RDWR | O_CREAT, 0600)));
    for (int i = 0; i < KIDS; i++) {
        kids[i] = start();
        if (kids[i].pid)
            continue;
        int fd = SYS(open(path, O_RDWR));
        for (int turn = 0; turn < turns; turn++) {
            lock_by(kind, fd, section, 1);
            CHECK_EQ(section->owner, 0, "two have the lock; the other");
            section->owner = self.pid;
            long count = section->count;
            doze(1500);
            CHECK_EQ(section->owner, self.pid, "the lock was lost; its owner");
            section->count = count + 1;
            section->owner = 0;
            lock_by(kind, fd, section, 0);
            doze(1500);
        }
        end_kid();
    }
    for (int i = 0; i < KIDS; i++)
        finish(&kids[i]);
    CHECK_EQ(section->count, KIDS * turns, "turns under the lock");
    SYS(unlink(path));
    unshare_page(section);
}

static volatile sig_atomic_t last_value;

static void note_value(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    CHECK_EQ(info->si_value.sival_int, last_value + 1, "value of a signal");
    last_value = info->si_value.sival_int;
}

/* Queued signals come all and in their order, to a handler or to sigwaitinfo(2). */
static void act_signals(void)
{
    int count = 10 + (int)pick(60), waits = (int)pick(2), ready[2];
    sigset_t set, before;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    SYS(sigprocmask(SIG_BLOCK, &set, &before));
    SYS(pipe(ready));
    struct kid kid = start();
    if (kid.pid == 0) {
        struct sigaction action = {.sa_sigaction = note_value, .sa_flags = SA_SIGINFO | SA_RESTART};
        last_value = 0;
        SYS(sigaction(SIGRTMIN + 3, &action, NULL));
        put(ready[1], "", 1);
        while (last_value < count) {
            siginfo_t info;
            if (!waits)
                sigsuspend(&before);
            else if (sigwaitinfo(&set, &info) > 0)
                note_value(info.si_signo, &info, NULL);
            else
                CHECK(0, "sigwaitinfo: %s", strerror(errno));
            if (pick(4) == 0)
                doze(3000);
        }
        CHECK_EQ(last_value, count, "signals that came");
        end_kid();
    }
    char byte;
    CHECK(get(ready[0], &byte, 1), "the child is not ready");
    for (int i = 1; i <= count; i++) {
        SYS(sigqueue(kid.pid, SIGRTMIN + 3, (union sigval){.sival_int = i}));
        if (pick(3) == 0)
            doze(2000);
    }
    finish(&kid);
    SYS(sigprocmask(SIG_SETMASK, &before, NULL));
    close(ready[0]);
    close(ready[1]);
}

/* One sleep of another kind than doze(): its timeout comes, not before its time. */
static void sleep_once(unsigned kind, long ns)
{
    struct timespec span = {.tv_nsec = ns};
    sigset_t none;
    int word = 0, ended, fd;
    uint64_t begin = clock_ns(CLOCK_MONOTONIC);
    struct timespec until = {.tv_sec = (time_t)((begin + (uint64_t)ns) / NS_PER_S),
                             .tv_nsec = (long)((begin + (uint64_t)ns) % NS_PER_S)};
    sigemptyset(&none);
    sigaddset(&none, SIGRTMIN + 5);
    switch (kind) {
    case 0:
        CHECK_EQ(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL), 0, "until");
        break;
    case 1:
        CHECK_EQ(poll(NULL, 0, (int)(ns / 1000000) + 1), 0, "poll");
        break;
    case 2:
        CHECK_EQ(ppoll(NULL, 0, &span, NULL), 0, "ppoll");
        break;
    case 3:
        SYS(sigprocmask(SIG_BLOCK, &none, NULL));
        ended = sigtimedwait(&none, NULL, &span);
        CHECK(ended == -1 && errno == EAGAIN, "sigtimedwait: %d %s", ended, strerror(errno));
        break;
    case 4:
        ended = (int)syscall(SYS_futex, &word, FUTEX_WAIT, 0, &span, NULL, 0);
        CHECK(ended == -1 && errno == ETIMEDOUT, "futex: %d %s", ended, strerror(errno));
        break;
    default:
        fd = SYS(epoll_create1(0));
        CHECK_EQ(epoll_wait(fd, &(struct epoll_event){0}, 1, (int)(ns / 1000000) + 1), 0, "epoll");
        close(fd);
    }
    CHECK(clock_ns(CLOCK_MONOTONIC) - begin >= (uint64_t)ns, "sleep %u was too short", kind);
}

static void act_sleeps(void)
{
    for (int i = 0; i < 4; i++) {
        sleep_once(pick(6), 1000L * (1 + pick(200000)));
        check_self();
    }
}

#include "soak_more.h"
#endif
