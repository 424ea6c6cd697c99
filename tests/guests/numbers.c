/* Numbers of processes wherever calls carry them: what comes with signals, waits, owners, locks,
 * credentials of sockets, timers, scheduling, memory of others, /proc. */
#include "guest.h"
#include <linux/kcmp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>

static volatile sig_atomic_t sender, code, fired;
static pid_t own, child;
static int ask[2], answer[2];

static void on_signal(int sig, siginfo_t *info, void *context)
{
    (void)sig;
    (void)context;
    sender = info->si_pid;
    code = info->si_code;
}

static void on_timer(int sig)
{
    (void)sig;
    fired = (int)syscall(SYS_gettid);
}

/* The child does what a byte tells. */
__attribute__((noreturn)) static void serve(void)
{
    char what;
    while (read(ask[0], &what, 1) == 1) {
        if (what == 'k')
            SYS(kill(getppid(), SIGUSR1));
        CHECK_EQ(getppid(), own, "parent of the child");
        pid_t pid = getpid();
        SYS(write(answer[1], &pid, sizeof(pid)));
    }
    _exit(3);
}

static pid_t question(char what)
{
    pid_t pid;
    SYS(write(ask[1], &what, 1));
    CHECK_EQ(read(answer[0], &pid, sizeof(pid)), (long)sizeof(pid), "answer");
    return pid;
}

static void signals(void)
{
    sigset_t usr1, usr2;
    siginfo_t info;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    sender = 0;
    CHECK_EQ(question('k'), child, "the child's number");
    for (int i = 0; i < 5000 && !sender; i++)
        usleep(1000);
    CHECK_EQ(sender, child, "si_pid of a handler");
    CHECK_EQ(code, SI_USER, "si_code of a handler");
    pthread_sigmask(SIG_BLOCK, &usr1, NULL);
    question('k');
    CHECK_EQ(SYS(sigwaitinfo(&usr1, &info)), SIGUSR1, "sigwaitinfo");
    CHECK_EQ(info.si_pid, child, "si_pid of sigwaitinfo");
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    pthread_sigmask(SIG_BLOCK, &usr2, NULL);
    SYS(sigqueue(own, SIGUSR2, (union sigval){.sival_int = 7}));
    struct timespec soon = {.tv_sec = 10};
    CHECK_EQ(SYS(sigtimedwait(&usr2, &info, &soon)), SIGUSR2, "sigtimedwait");
    CHECK_EQ(info.si_pid, own, "si_pid of sigqueue");
    SYS(tgkill(own, (pid_t)syscall(SYS_gettid), SIGUSR2));
    CHECK_EQ(SYS(sigwaitinfo(&usr2, &info)), SIGUSR2, "sigwaitinfo");
    CHECK_EQ(info.si_pid, own, "si_pid of tgkill");
    pthread_sigmask(SIG_UNBLOCK, &usr2, NULL);
}

static void waits(void)
{
    int status;
    siginfo_t info;
    pid_t pid = SYS(fork());
    if (pid == 0)
        _exit(getpid() == (pid_t)syscall(SYS_gettid) ? 9 : 1);
    CHECK_EQ(SYS(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT)), 0, "waitid");
    CHECK_EQ(info.si_pid, pid, "si_pid of waitid");
    CHECK_EQ(info.si_status, 9, "si_status of waitid");
    CHECK_EQ(SYS(waitpid(-1, &status, 0)), pid, "waitpid of any child");
    CHECK_EQ(waitpid(pid, &status, 0), -1, "waitpid of one that is gone");
    pid = SYS(fork());
    if (pid == 0) {
        SYS(setpgid(0, 0));
        _exit(getpgrp() == getpid() && kill(-getpid(), 0) == 0 ? 5 : 1);
    }
    setpgid(pid, pid);
    CHECK_EQ(SYS(waitpid(-pid, &status, 0)), pid, "waitpid of a group");
    CHECK_EQ(status, 5 << 8, "status of the one in a group of its own");
    CHECK_EQ(kill(2000000000, 0), -1, "kill of nobody");
}

/* What does not move while it is open: before all moves and after them. */
static void owners(void)
{
    int pidfd = SYS(syscall(SYS_pidfd_open, child, 0));
    SYS(syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0));
    close(pidfd);
    char path[256];
    int fd = SYS(open(guest_path(path, sizeof(path), "lock"), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    struct flock lock = {.l_type = F_WRLCK, .l_len = 1};
    SYS(fcntl(fd, F_SETLK, &lock));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        SYS(fcntl(fd, F_GETLK, &lock));
        _exit(lock.l_type == F_WRLCK && lock.l_pid == getppid() ? 4 : 1);
    }
    int status;
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 4 << 8, "who holds the lock");
    close(fd);
    int pair[2];
    SYS(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
    struct ucred peer;
    socklen_t size = sizeof(peer);
    SYS(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &size));
    CHECK_EQ(peer.pid, own, "SO_PEERCRED");
    SYS(fcntl(pair[0], F_SETOWN, child));
    CHECK_EQ(fcntl(pair[0], F_GETOWN), child, "F_GETOWN");
    struct f_owner_ex owner = {.type = F_OWNER_PID, .pid = own};
    SYS(fcntl(pair[1], F_SETOWN_EX, &owner));
    memset(&owner, 0, sizeof(owner));
    SYS(fcntl(pair[1], F_GETOWN_EX, &owner));
    CHECK_EQ(owner.pid, own, "F_GETOWN_EX");
    close(pair[0]);
    close(pair[1]);
}

static void others(void)
{
    static volatile long word;
    long seen = 0;
    word = (long)guest_mix((uint64_t)child);
    struct iovec here = {&seen, sizeof(seen)}, there = {(void *)&word, sizeof(word)};
    CHECK_EQ(SYS(process_vm_readv(own, &here, 1, &there, 1, 0)), (long)sizeof(seen), "readv");
    CHECK_EQ(seen, word, "what process_vm_readv(2) has read");
    CHECK_EQ(SYS(syscall(SYS_kcmp, own, own, KCMP_VM, 0, 0)), 0, "kcmp");
    CHECK(SYS(syscall(SYS_kcmp, own, child, KCMP_VM, 0, 0)) > 0, "kcmp with the child");
    errno = 0;
    CHECK(getpriority(PRIO_PROCESS, (id_t)child) != -1 || !errno, "getpriority: %s", strerror(errno));
    SYS(sched_getscheduler(child));
    cpu_set_t cpus;
    SYS(sched_getaffinity(child, sizeof(cpus), &cpus));
    struct rlimit limit;
    SYS(prlimit(child, RLIMIT_NOFILE, NULL, &limit));
    prctl(PR_SET_PTRACER, child, 0, 0, 0);
    clockid_t clock;
    CHECK_EQ(clock_getcpuclockid(child, &clock), 0, "clock_getcpuclockid");
    clock_ns(clock);
    CHECK_EQ(pthread_getcpuclockid(pthread_self(), &clock), 0, "pthread_getcpuclockid");
    clock_ns(clock);
}

static void timer_of_thread(void)
{
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 2};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    fired = 0;
    SYS(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec soon = {.it_value.tv_nsec = 1000};
    SYS(timer_settime(timer, 0, &soon, NULL));
    for (int i = 0; i < 5000 && !fired; i++)
        usleep(1000);
    CHECK_EQ(fired, (int)syscall(SYS_gettid), "the thread that the timer's signal went to");
    SYS(timer_delete(timer));
}

static void *thread(void *tid)
{
    *(pid_t *)tid = (pid_t)syscall(SYS_gettid);
    return NULL;
}

static void proc(void)
{
    char path[64], link[64];
    snprintf(path, sizeof(path), "/proc/%d/stat", child);
    CHECK(access(path, R_OK) == 0, "%s: %s", path, strerror(errno));
    snprintf(path, sizeof(path), "/proc/%d/exe", own);
    SYS(readlink(path, link, sizeof(link)));
    int dir = SYS(open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    snprintf(path, sizeof(path), "%d/comm", child);
    int fd = SYS(openat(dir, path, O_RDONLY | O_CLOEXEC));
    close(fd);
    close(dir);
    pthread_t id;
    pid_t tid = 0;
    CHECK_EQ(pthread_create(&id, NULL, thread, &tid), 0, "pthread_create");
    pthread_join(id, NULL);
    CHECK(tid != own && tid > 0, "number of a thread: %d", tid);
}

int main(void)
{
    guest_begin();
    own = getpid();
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    signal(SIGRTMIN + 2, on_timer);
    SYS(pipe2(ask, O_CLOEXEC));
    SYS(pipe2(answer, O_CLOEXEC));
    child = SYS(fork());
    if (child == 0) {
        close(ask[1]);
        close(answer[0]);
        serve();
    }
    close(ask[0]);
    close(answer[1]);
    question('i');
    owners();
    timer_of_thread();
    guest_ready();
    do {
        signals();
        waits();
        others();
        proc();
    } while (guest_running());
    owners();
    timer_of_thread();
    close(ask[1]);
    int status;
    CHECK_EQ(SYS(waitpid(child, &status, 0)), child, "waitpid");
    CHECK_EQ(status, 3 << 8, "status of the child");
    guest_success();
}
