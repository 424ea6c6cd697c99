/* pidfds of single threads (PIDFD_THREAD): of this process, with a duplicate and without blocking,
 * of another process's thread, and of threads that end. */
#include "guest.h"
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static volatile pid_t started;
static volatile int let_go;
static __thread volatile sig_atomic_t heard;
static volatile int *heard_of[2];

static void on_signal(int sig)
{
    (void)sig;
    heard++;
}

static void *stay(void *unused)
{
    heard_of[0] = (volatile int *)&heard;
    started = gettid();
    for (;;)
        pause();
    return unused;
}

static void *end_when_told(void *unused)
{
    started = gettid();
    while (!let_go)
        usleep(300);
    return unused;
}

static pid_t start(void *(*begin)(void *), pthread_t *thread)
{
    started = 0;
    CHECK(!pthread_create(thread, NULL, begin, NULL), "thread");
    while (!started)
        usleep(100);
    return started;
}

static int open_thread(pid_t tid, unsigned flags)
{
    return (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD | flags);
}

static int has_ended(int fd)
{
    struct pollfd ask = {.fd = fd, .events = POLLIN};
    return SYS(poll(&ask, 1, 0)) == 1;
}

static void expect(int fd, pid_t tid, const char *what)
{
    char path[64], text[4096], line[64];
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    snprintf(line, sizeof(line), "\nPid:\t%d\n", tid);
    guest_slurp(path, text, sizeof(text));
    CHECK(strstr(text, line), "%s is not thread %d: %s", what, tid, text);
    CHECK(SYS(fcntl(fd, F_GETFL)) & PIDFD_THREAD, "%s stands for a process", what);
}

int main(void)
{
    enum { AGAIN = 77 };
    pthread_t stays, goes;
    guest_begin();
    signal(SIGUSR1, on_signal);
    pid_t tid = start(stay, &stays);
    int one = open_thread(tid, O_NONBLOCK);
    if (one < 0 && errno == EINVAL)
        skip("no pidfds of threads before Linux 6.9");
    SYS(dup2(one, AGAIN));
    int ends[2];
    SYS(pipe(ends));
    pid_t child = SYS(fork());
    if (child == 0) {
        SYS(close(one));
        SYS(close(AGAIN));
        tid = start(stay, &stays);
        SYS(write(ends[1], &tid, sizeof(tid)));
        for (;;)
            pause();
    }
    pid_t far;
    CHECK_EQ(SYS(read(ends[0], &far, sizeof(far))), sizeof(far), "the child's thread");
    int other = SYS(open_thread(far, 0));
    guest_ready();
    do {
        let_go = 0;
        pid_t ending = start(end_when_told, &goes);
        int short_lived = SYS(open_thread(ending, 0));
        for (int n = 0; n < 3; n++) {
            expect(one, tid, "the first");
            expect(AGAIN, tid, "its duplicate");
            expect(other, far, "that of the child's thread");
            expect(short_lived, ending, "the short-lived one");
            CHECK(SYS(fcntl(AGAIN, F_GETFL)) & O_NONBLOCK, "it would block");
            CHECK_EQ(SYS(fcntl(one, F_GETFD)), FD_CLOEXEC, "close-on-exec");
            CHECK_EQ(SYS(fcntl(AGAIN, F_GETFD)), 0, "close-on-exec of the duplicate");
            CHECK(!has_ended(one) && !has_ended(other) && !has_ended(short_lived), "ended");
            int before = *heard_of[0];
            SYS(syscall(SYS_pidfd_send_signal, one, SIGUSR1, NULL, 0));
            for (int wait = 0; *heard_of[0] == before; wait++) {
                CHECK(wait < 20000, "the signal did not come");
                usleep(500);
            }
            guest_running();
        }
        let_go = 1;
        CHECK(!pthread_join(goes, NULL), "join");
        struct pollfd ask = {.fd = short_lived, .events = POLLIN};
        CHECK_EQ(SYS(poll(&ask, 1, 10000)), 1, "the end of a thread");
        guest_running();
        CHECK(has_ended(short_lived), "a thread that has ended lives again");
        SYS(close(short_lived));
    } while (guest_running());
    SYS(kill(child, SIGKILL));
    SYS(waitpid(child, NULL, 0));
    guest_success();
}
