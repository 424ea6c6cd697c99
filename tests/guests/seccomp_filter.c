/* Seccomp filters of the program's own: two threads with different ones, by seccomp(2) and prctl(2),
 * and a child that has inherited some and has more. What they answer is checked all the time.
 *
 *   tsync       all threads share their filters, and get more of them later (SECCOMP_FILTER_FLAG_TSYNC)
 *   exec        another thread than the first executes this program again
 *   privileged  without no_new_privs */
#include "crew.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

static int privileged;

/* What a call without sense answers: an errno. */
static int answer(long nr)
{
    errno = 0;
    long value = syscall(nr, -1L, -1L, -1L, -1L, -1L, -1L);
    return value == -1 ? errno : 0;
}

/* Answers call NR with an errno, but where its sixth argument is 5. */
static void install(long nr, int error, unsigned flags, int by_prctl)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 5, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {COUNT(code), code};
    if (!privileged)
        SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (by_prctl)
        SYS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    else
        CHECK_EQ(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program), 0, "seccomp");
}

static int count(void)
{
    char text[32];
    guest_proc_status("Seccomp_filters", text, sizeof(text));
    return atoi(text);
}

static void expect(long nr, int error, const char *what)
{
    CHECK_EQ(answer(nr), error, what);
}

static volatile int stop, installed;

static void *second(void *unused)
{
    install(SYS_swapoff, EXDEV, 0, 1);
    install(SYS_mount, ELOOP, SECCOMP_FILTER_FLAG_LOG, 0);
    installed = 1;
    while (!stop) {
        expect(SYS_swapon, EDOM, "what both threads have");
        expect(SYS_swapoff, EXDEV, "the second thread's own");
        expect(SYS_mount, ELOOP, "the second thread's last");
        usleep(700);
    }
    return unused;
}

static long serve(int n, char question)
{
    if (question == 'b')
        install(SYS_umount2, EMLINK, 0, 0);
    expect(SYS_swapon, EDOM, "what the child has inherited");
    expect(SYS_umount2, EMLINK, "the child's own");
    return n;
}

static void threads(void)
{
    pthread_t thread;
    int base = count();
    install(SYS_swapon, EDOM, 0, 0);
    struct mate child = crew_start(0, serve);
    crew_ask(&child, 'b');
    CHECK(!pthread_create(&thread, NULL, second, NULL), "thread");
    while (!installed)
        usleep(200);
    int without = answer(SYS_swapoff);
    CHECK(without != EXDEV, "the first thread has the second's filter");
    guest_ready();
    do {
        expect(SYS_swapon, EDOM, "what both threads have");
        expect(SYS_swapoff, without, "the first thread has the second's filter");
        CHECK_EQ(count(), base + 1, "filters of the first thread");
        crew_ask(&child, 'c');
    } while (guest_running());
    stop = 1;
    CHECK(!pthread_join(thread, NULL), "join");
    crew_end(&child);
}

static volatile int all;

static void *follow(void *unused)
{
    while (!stop) {
        if (all > 0)
            expect(SYS_swapon, EDOM, "what all threads got");
        if (all > 1)
            expect(SYS_swapoff, ERANGE, "what all threads got later");
        usleep(500);
    }
    return unused;
}

static void together(void)
{
    pthread_t others[2];
    for (size_t i = 0; i < COUNT(others); i++)
        CHECK(!pthread_create(&others[i], NULL, follow, NULL), "thread");
    install(SYS_swapon, EDOM, SECCOMP_FILTER_FLAG_TSYNC, 0);
    all = 1;
    guest_ready();
    int base = count(), turns = 0, more = 0;
    do {
        if (++turns % 4 == 0 && more < 20) {
            install(SYS_swapoff, ERANGE, SECCOMP_FILTER_FLAG_TSYNC, 0);
            more++;
            all = 2;
        }
        CHECK_EQ(count(), base + more, "filters");
    } while (guest_running());
    stop = 1;
    for (size_t i = 0; i < COUNT(others); i++)
        CHECK(!pthread_join(others[i], NULL), "join");
}

static char **arguments;

static void *execute(void *unused)
{
    install(SYS_swapoff, EXDEV, 0, 0);
    SYS(execl("/proc/self/exe", arguments[0], "executed", (char *)NULL));
    return unused;
}

static void executed(void)
{
    guest_ready();
    do {
        expect(SYS_swapon, EDOM, "what the first thread had");
        expect(SYS_swapoff, EXDEV, "what the executing thread had");
    } while (guest_running());
}

static void alone(void)
{
    char text[32];
    privileged = 1;
    if (geteuid() != 0)
        skip("needs CAP_SYS_ADMIN");
    install(SYS_swapon, EDOM, 0, 1);
    install(SYS_swapoff, EXDEV, 0, 0);
    guest_proc_status("NoNewPrivs", text, sizeof(text));
    int before = atoi(text);
    guest_ready();
    do {
        expect(SYS_swapon, EDOM, "the first filter");
        expect(SYS_swapoff, EXDEV, "the second filter");
        guest_proc_status("NoNewPrivs", text, sizeof(text));
        CHECK_EQ(atoi(text), before, "no_new_privs");
    } while (guest_running());
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "threads";
    arguments = argv;
    guest_begin();
    if (!strcmp(how, "exec")) {
        pthread_t thread;
        install(SYS_swapon, EDOM, 0, 0);
        CHECK(!pthread_create(&thread, NULL, execute, NULL), "thread");
        pthread_join(thread, NULL);
        fail("nothing was executed");
    }
    if (!strcmp(how, "threads"))
        threads();
    else if (!strcmp(how, "tsync"))
        together();
    else if (!strcmp(how, "executed"))
        executed();
    else
        alone();
    guest_success();
}
