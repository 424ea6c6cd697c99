/* Holds one object that cannot move, named by the argument as in `vosrun capabilities`; a netlink
 * socket without one. Its moves are refused, and it goes on. */
#include "guest.h"
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/fanotify.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* A process outside of the job: the parent, or pid 1 where that is outside of the namespace. */
static pid_t outsider(void)
{
    pid_t parent = getppid();
    return parent ? parent : 1;
}

static char path[256];
static pid_t child;

static int new_file(const char *suffix)
{
    return SYS(open(guest_path(path, sizeof(path), suffix), O_RDWR | O_CREAT | O_TRUNC, 0600));
}

/* Ends the guest where this machine has no such object. */
static long may_lack(long value, const char *what)
{
    if (value == -1)
        skip(what);
    return value;
}

static void netlink(void) { SYS(socket(AF_NETLINK, SOCK_RAW, 0)); }
static void tcp(void) { SYS(socket(AF_INET, SOCK_STREAM, 0)); }
static void udp_group(void)
{
    struct sockaddr_in group = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0xefff4d09)};
    SYS(bind(SYS(socket(AF_INET, SOCK_DGRAM, 0)), (struct sockaddr *)&group, sizeof(group)));
}
static void unix_socket(void)
{
    int pair[2];
    SYS(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    /* Lets everything pass. */
    struct sock_filter all[] = {{BPF_RET | BPF_K, 0, 0, 0xffffffff}};
    struct sock_fprog filter = {1, all};
    SYS(setsockopt(pair[0], SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)));
}
static void other_socket(void) { may_lack(socket(AF_ALG, SOCK_SEQPACKET, 0), "no AF_ALG sockets"); }
static void proc(void) { SYS(open("/proc/1/stat", O_RDONLY)); }
static void pidfd(void) { SYS(syscall(SYS_pidfd_open, outsider(), 0)); }
static void namespace_fd(void) { SYS(open("/proc/self/ns/net", O_RDONLY)); }
static void fanotify(void)
{
    may_lack(fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID, O_RDONLY), "no fanotify");
}
static void io_uring(void)
{
    char params[120] = {0};
    may_lack(syscall(SYS_io_uring_setup, 4, params), "no io_uring");
}
static void perf(void)
{
    struct perf_event_attr attr = {.type = PERF_TYPE_SOFTWARE, .size = sizeof(attr)};
    attr.config = PERF_COUNT_SW_TASK_CLOCK;
    attr.exclude_kernel = 1;
    may_lack(syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0), "no perf events");
}
static void bpf(void)
{
    /* BPF_MAP_CREATE of an array: type, size of key and value, entries. */
    uint32_t attr[32] = {2, 4, 8, 1};
    may_lack(syscall(SYS_bpf, 0, attr, sizeof(attr)), "no BPF maps");
}
static void userfaultfd(void) { may_lack(syscall(SYS_userfaultfd, 1), "no userfaultfd"); }
static void secretmem(void) { may_lack(syscall(SYS_memfd_secret, 0), "no memfd_secret"); }
static void kvm(void) { may_lack(open("/dev/kvm", O_RDWR), "no /dev/kvm"); }
static void landlock(void)
{
    uint64_t attr = 1;
    may_lack(syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0), "no landlock");
}
static void lease(void)
{
    int fd = new_file("lease");
    SYS(ftruncate(fd, 4096));
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED, "mmap");
    SYS(fcntl(fd, F_SETLEASE, F_WRLCK));
}
static void async_owner(void)
{
    int ends[2];
    SYS(pipe(ends));
    SYS(fcntl(ends[0], F_SETOWN, outsider()));
}
static void pty_master(void) { SYS(posix_openpt(O_RDWR | O_NOCTTY)); }
static void device(void)
{
    static const char *const names[] = {"/dev/fuse", "/dev/net/tun", "/dev/kmsg", "/dev/rtc0", "/dev/loop-control"};
    for (size_t i = 0; i < COUNT(names); i++)
        if (open(names[i], O_RDONLY) >= 0)
            return;
    skip("no device that may be opened");
}
static int watching(void)
{
    int fd = SYS(inotify_init1(0));
    SYS(inotify_add_watch(fd, guest_path(path, sizeof(path), "watched"), IN_MODIFY));
    return fd;
}
static void inotify(void)
{
    SYS(close(new_file("watched")));
    watching();
}
static void inotify_events(void)
{
    int file = new_file("watched");
    watching();
    SYS(write(file, "x", 1));
}
static void memfd_huge(void) { may_lack(memfd_create("huge", MFD_HUGETLB), "no huge pages"); }
static void memfd_future_write(void)
{
    int fd = SYS(memfd_create("sealed", MFD_ALLOW_SEALING));
    SYS(ftruncate(fd, 4096));
    SYS(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    SYS(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
}
static void file_unlinked(void)
{
    char other[256];
    new_file("one-name");
    SYS(link(path, guest_path(other, sizeof(other), "other-name")));
    SYS(unlink(path));
}
static void directory_gone(void)
{
    SYS(mkdir(guest_path(path, sizeof(path), "directory"), 0700));
    SYS(chdir(path));
    SYS(rmdir(path));
}
static void chrooted(void)
{
    *strrchr(strcpy(path, guest_stop_path), '/') = 0;
    may_lack(chroot(path), "needs root");
    guest_stop_path = "/stop";
    SYS(chdir("/"));
}
/* Answers one call with ACTION. */
static void filter(int nr, unsigned action, unsigned flags)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SYS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program));
}
static void seccomp(void) { filter(SYS_swapon, SECCOMP_RET_ERRNO | EPERM, 0); }
static void seccomp_narrow(void) { filter(SYS_mincore, SECCOMP_RET_ERRNO | EPERM, 0); }
static void seccomp_listener(void)
{
    filter(SYS_swapon, SECCOMP_RET_USER_NOTIF, SECCOMP_FILTER_FLAG_NEW_LISTENER);
}
static int idle(void *unused)
{
    for (;;)
        syscall(SYS_pause);
    return unused != NULL;
}
static void start_child(int flags)
{
    static char stack[16384] __attribute__((aligned(16)));
    child = SYS(clone(idle, stack + sizeof(stack), flags | SIGCHLD, NULL));
}
static void namespaces(void) { may_lack(unshare(geteuid() ? CLONE_NEWUSER : CLONE_NEWUTS), "no namespaces"); }
static void *own_files(void *ready)
{
    SYS(unshare(CLONE_FILES));
    SYS(epoll_create1(0));
    *(volatile int *)ready = 1;
    idle(NULL);
    return NULL;
}
static void thread_files_epoll(void)
{
    static volatile int ready;
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, own_files, (void *)&ready), "thread");
    while (!ready)
        usleep(1000);
}
__attribute__((noreturn)) static int sleeps(void *unused)
{
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
        pause();
}
/* Two children that have their memory in common, but not with their parent. */
static void clone_shared_apart(void)
{
    enum { STACK = 64 << 10 };
    int told[2];
    char byte;
    SYS(pipe(told));
    child = SYS(fork());
    if (child == 0) {
        char *stack = malloc(STACK);
        CHECK(stack, "malloc");
        SYS(clone(sleeps, stack + STACK, CLONE_VM | CLONE_PARENT | SIGCHLD, NULL));
        CHECK_EQ(write(told[1], "", 1), 1, "write");
        sleeps(NULL);
    }
    CHECK_EQ(read(told[0], &byte, 1), 1, "read");
    SYS(close(told[0]));
    SYS(close(told[1]));
}
static void untraced(void) { start_child(CLONE_UNTRACED); }
static void mem_hugetlb(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_NORESERVE;
    void *at = mmap(NULL, 2 << 20, PROT_READ, flags, -1, 0);
    may_lack(at == MAP_FAILED ? -1 : 0, "no huge pages");
}
static void mem_pkey(void)
{
    void *at = SYS(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    int key = (int)may_lack(syscall(SYS_pkey_alloc, 0, 0), "no protection keys");
    SYS(syscall(SYS_pkey_mprotect, at, 4096, PROT_READ, key));
}
static void mem_sealed(void)
{
    enum { MSEAL = 462 };
    void *at = SYS(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    may_lack(syscall(MSEAL, at, 4096, 0), "no mseal");
}
static void mem_outside(void)
{
    SYS(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pid_t middle = SYS(fork());
    if (middle == 0) {
        if (SYS(fork()) == 0)
            while (!guest_stopping())
                usleep(1000);
        _exit(0);
    }
    SYS(waitpid(middle, NULL, 0));
}
static void aio(void)
{
    unsigned long context = 0;
    may_lack(syscall(SYS_io_setup, 4, &context), "no AIO");
}
static mqd_t new_queue(void)
{
    char name[64];
    struct mq_attr attr = {.mq_maxmsg = 2, .mq_msgsize = 8};
    snprintf(name, sizeof(name), "/guest.%d.%d", (int)getuid(), getpid());
    mqd_t queue = SYS(mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &attr));
    SYS(mq_unlink(name));
    return queue;
}
static void mq_busy(void)
{
    mqd_t queue = new_queue();
    SYS(mq_send(queue, "x", 1, 0));
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    SYS(mq_notify(queue, &event));
}
static void on_message(union sigval value) { (void)value; }
static void mq_thread(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_message};
    SYS(mq_notify(new_queue(), &event));
}
static void aio_busy(void)
{
    /* It polls a pipe into which nobody writes. */
    static struct iocb request = {.aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN};
    struct iocb *list = &request;
    aio_context_t context = 0;
    int ends[2];
    SYS(pipe(ends));
    request.aio_fildes = (uint32_t)ends[0];
    SYS(syscall(SYS_io_setup, 8, &context));
    CHECK_EQ(SYS(syscall(SYS_io_submit, context, 1L, &list)), 1, "io_submit");
}

static volatile pid_t sleeper;
static void *sleep_on_cpu_time(void *unused)
{
    sleeper = gettid();
    struct timespec long_time = {.tv_sec = 1000};
    clock_nanosleep(CLOCK_PROCESS_CPUTIME_ID, 0, &long_time, NULL);
    return unused;
}
static void cpu_sleep(void)
{
    pthread_t thread;
    char path_of[64], text[256];
    CHECK(!pthread_create(&thread, NULL, sleep_on_cpu_time, NULL), "thread");
    while (!sleeper)
        usleep(500);
    snprintf(path_of, sizeof(path_of), "/proc/self/task/%d/syscall", sleeper);
    while (!guest_slurp(path_of, text, sizeof(text)) ||
           strtol(text, NULL, 10) != SYS_clock_nanosleep)
        usleep(500);
}

/* Goes on as a copy of its own executable, and removes that. */
static void exe_gone(char **argv)
{
    if (argv[2]) {
        SYS(unlink(argv[2]));
        return;
    }
    static char page[65536];
    ssize_t n;
    int from = SYS(open("/proc/self/exe", O_RDONLY)), to = new_file("copy");
    while ((n = SYS(read(from, page, sizeof(page)))) > 0)
        CHECK_EQ(write(to, page, (size_t)n), n, "write");
    SYS(fchmod(to, 0700));
    SYS(close(from));
    SYS(close(to));
    SYS(execl(path, argv[0], argv[1], path, (char *)NULL));
}

static volatile pid_t second;
static void *pause_for_ever(void *unused)
{
    second = gettid();
    for (;;)
        pause();
    return unused;
}
static void pidfd_thread_shared(void)
{
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, pause_for_ever, NULL), "thread");
    while (!second)
        usleep(500);
    /* PIDFD_THREAD */
    may_lack(syscall(SYS_pidfd_open, second, O_EXCL), "no pidfds of threads");
    child = SYS(fork());
    if (!child)
        for (;;)
            pause();
}

static const struct {
    const char *name;
    void (*hold)(void);
} KINDS[] = {
    {"netlink", netlink}, {"tcp-unconnected", tcp}, {"udp-group", udp_group}, {"unix", unix_socket},
    {"socket-other", other_socket}, {"proc-outside", proc}, {"pidfd-outside", pidfd},
    {"namespace-fd", namespace_fd}, {"fanotify", fanotify}, {"io-uring", io_uring},
    {"perf", perf}, {"bpf", bpf}, {"userfaultfd", userfaultfd}, {"secretmem", secretmem},
    {"kvm", kvm}, {"landlock", landlock},
    {"lease-write", lease},
    {"async-outside", async_owner}, {"pty-master", pty_master}, {"devices", device},
    {"inotify", inotify}, {"inotify-events", inotify_events}, {"memfd-huge", memfd_huge},
    {"memfd-future-write", memfd_future_write}, {"file-unlinked", file_unlinked},
    {"directory-gone", directory_gone}, {"chroot", chrooted}, {"seccomp", seccomp},
    {"seccomp-narrow", seccomp_narrow}, {"seccomp-listener", seccomp_listener},
    {"namespaces", namespaces}, {"thread-files-epoll", thread_files_epoll},
    {"clone-shared-apart", clone_shared_apart}, {"untraced", untraced},
    {"mem-hugetlb", mem_hugetlb}, {"mem-pkey", mem_pkey}, {"mem-sealed", mem_sealed},
    {"aio", aio}, {"aio-busy", aio_busy}, {"pidfd-thread-shared", pidfd_thread_shared},
    {"posix-mq-thread", mq_thread}, {"posix-mq-busy", mq_busy}, {"mem-outside", mem_outside}, {"cpu-sleep", cpu_sleep},
};

static void go_on(void)
{
    while (guest_running())
        ;
    if (child) {
        SYS(kill(child, SIGKILL));
        SYS(waitpid(child, NULL, __WALL));
    }
    guest_success();
}

/* The first thread has ended before the guest is ready. */
static void *after_leader(void *leader)
{
    CHECK(!pthread_join((pthread_t)leader, NULL), "pthread_join");
    guest_ready();
    go_on();
    return NULL;
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "netlink";
    void (*hold)(void) = netlink;
    guest_begin();
    if (!strcmp(kind, "leader-ended")) {
        pthread_t other;
        CHECK(!pthread_create(&other, NULL, after_leader, (void *)pthread_self()), "thread");
        pthread_exit(NULL);
    }
    for (size_t i = 0; i < COUNT(KINDS); i++)
        if (!strcmp(kind, KINDS[i].name))
            hold = KINDS[i].hold;
    if (!strcmp(kind, "exe-gone"))
        exe_gone(argv);
    else
        hold();
    guest_ready();
    go_on();
}
