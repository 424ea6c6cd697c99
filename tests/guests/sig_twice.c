/* Standard signals to one thread, each sent when the one before is no longer pending: each has its
 * run of the handler, also the one that comes while another is about to be delivered. */
#include "guest.h"
#include <pthread.h>

static volatile unsigned handled;
static pid_t tid;

static void on_signal(int sig)
{
    (void)sig;
    __atomic_add_fetch(&handled, 1, __ATOMIC_RELEASE);
}

static void *take(void *unused)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    tid = (pid_t)syscall(SYS_gettid);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    for (;;)
        pause();
    return unused;
}

/* Signals that are pending for the thread alone. */
static uint64_t pending(void)
{
    char path[64], text[2048];
    snprintf(path, sizeof(path), "/proc/self/task/%d/status", tid);
    int fd = SYS(open(path, O_RDONLY | O_CLOEXEC));
    ssize_t n = SYS(read(fd, text, sizeof(text) - 1));
    SYS(close(fd));
    text[n] = 0;
    const char *line = strstr(text, "SigPnd:");
    CHECK(line != NULL, "no SigPnd in %s", path);
    return strtoull(line + 7, NULL, 16);
}

int main(void)
{
    guest_begin();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    pthread_t taker;
    CHECK_EQ(pthread_create(&taker, NULL, take, NULL), 0, "pthread_create");
    while (!tid)
        usleep(100);
    guest_ready();
    unsigned sent = 0;
    do
        for (int i = 0; i < 50; i++)
            if (!(pending() & 1ull << (SIGUSR1 - 1))) {
                SYS(syscall(SYS_tgkill, getpid(), tid, SIGUSR1));
                sent++;
            }
    while (guest_running());
    for (int n = 0; n < 5000 && handled < sent; n++)
        usleep(1000);
    CHECK_EQ(handled, sent, "runs of the handler");
    guest_success();
}
