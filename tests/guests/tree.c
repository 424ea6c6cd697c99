/* A parent and its children: numbers, pipes between them, a shared file offset, shared memory,
 * signals, stopped and dead children. */
#include "guest.h"
#include <sys/wait.h>

enum { CHILDREN = 3 };

struct ids {
    pid_t pid, ppid, pgid, sid;
};

struct child {
    pid_t pid;
    int ask, answer;
};

static struct child children[CHILDREN];
/* Shared by all: how often each child has answered. */
static volatile long *answers;
static int shared_file;
static volatile sig_atomic_t signalled;

static void on_signal(int sig)
{
    signalled = sig;
}

static struct ids own_ids(void)
{
    return (struct ids){getpid(), getppid(), getpgid(0), getsid(0)};
}

/* Answers each question by its numbers; a 0 ends it. */
__attribute__((noreturn)) static void serve(int n, int ask, int answer)
{
    char question;
    if (n == 1)
        SYS(setpgid(0, 0));
    if (n == 2)
        SYS(setsid());
    while (SYS(read(ask, &question, 1)) == 1 && question) {
        struct ids ids = own_ids();
        answers[n]++;
        SYS(write(shared_file, &question, 1));
        if (question == 's')
            while (!signalled)
                usleep(1000);
        CHECK_EQ(write(answer, &ids, sizeof(ids)), sizeof(ids), "answer");
        signalled = 0;
    }
    _exit(10 + n);
}

static void start(int n)
{
    int ask[2], answer[2];
    SYS(pipe(ask));
    SYS(pipe(answer));
    pid_t pid = SYS(fork());
    if (pid == 0) {
        close(ask[1]);
        close(answer[0]);
        serve(n, ask[0], answer[1]);
    }
    close(ask[0]);
    close(answer[1]);
    children[n] = (struct child){pid, ask[1], answer[0]};
}

static struct ids question(int n, char what)
{
    struct ids ids;
    CHECK_EQ(write(children[n].ask, &what, 1), 1, "question");
    if (what == 's')
        SYS(kill(children[n].pid, SIGUSR1));
    CHECK_EQ(read(children[n].answer, &ids, sizeof(ids)), sizeof(ids), "answer of a child");
    return ids;
}

static void check_child(int n, const struct ids *was, long asked)
{
    struct ids now = question(n, asked % 3 ? 'i' : 's');
    CHECK_EQ(now.pid, children[n].pid, "pid of a child");
    CHECK_EQ(now.ppid, getpid(), "parent of a child");
    CHECK_EQ(now.pgid, was->pgid, "group of a child");
    CHECK_EQ(now.sid, was->sid, "session of a child");
    CHECK_EQ(answers[n], asked, "answers in shared memory");
    CHECK_EQ(getpgid(children[n].pid), was->pgid, "group of a child, seen by its parent");
}

static void reap(pid_t pid, int status, const char *what)
{
    int got = -1;
    CHECK_EQ(SYS(waitpid(pid, &got, 0)), pid, what);
    CHECK_EQ(got, status, what);
}

/* Has the child ended, without reaping it? */
static void await_zombie(pid_t pid)
{
    siginfo_t info;
    SYS(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT));
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    answers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(answers != MAP_FAILED, "mmap: %s", strerror(errno));
    char path[256];
    shared_file = SYS(open(guest_path(path, sizeof(path), "shared"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    struct ids was[CHILDREN];
    for (int n = 0; n < CHILDREN; n++)
        start(n);
    long asked = 0;
    asked++;
    for (int n = 0; n < CHILDREN; n++)
        was[n] = question(n, 'i');
    CHECK_EQ(was[1].pgid, children[1].pid, "a group of its own");
    CHECK_EQ(was[2].sid, children[2].pid, "a session of its own");
    /* One that has ended, one that was killed, one that is stopped. */
    pid_t ended = SYS(fork());
    if (ended == 0)
        _exit(7);
    pid_t killed = SYS(fork());
    if (killed == 0)
        for (;;)
            pause();
    SYS(kill(killed, SIGKILL));
    pid_t stopped = SYS(fork());
    if (stopped == 0)
        for (;;)
            pause();
    SYS(kill(stopped, SIGSTOP));
    int status;
    CHECK_EQ(SYS(waitpid(stopped, &status, WUNTRACED)), stopped, "the stopped child");
    CHECK(WIFSTOPPED(status), "status %#x of the stopped child", status);
    await_zombie(ended);
    await_zombie(killed);
    guest_ready();
    do {
        asked++;
        for (int n = 0; n < CHILDREN; n++)
            check_child(n, &was[n], asked);
        CHECK_EQ(SYS(lseek(shared_file, 0, SEEK_CUR)), asked * CHILDREN, "the shared offset");
        CHECK_EQ(SYS(waitpid(stopped, &status, WNOHANG)), 0, "the stopped child ended");
    } while (guest_running());
    reap(ended, 7 << 8, "the child that had ended");
    reap(killed, SIGKILL, "the child that was killed");
    SYS(kill(stopped, SIGCONT));
    SYS(kill(stopped, SIGTERM));
    reap(stopped, SIGTERM, "the child that was stopped");
    for (int n = 0; n < CHILDREN; n++) {
        CHECK_EQ(write(children[n].ask, "", 1), 1, "the last question");
        reap(children[n].pid, (10 + n) << 8, "the end of a child");
    }
    CHECK_EQ(waitpid(-1, &status, WNOHANG), -1, "a child too many");
    guest_success();
}
