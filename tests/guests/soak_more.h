/*
 * The second half of soak.h.
 */
#ifndef SOAK_MORE_H
#define SOAK_MORE_H

/* A stopped child stands still; a continued one goes on. */
static void act_stop(void)
{
    volatile long *beat = share();
    volatile long *over = beat + 1;
    struct kid kid = start();
    if (kid.pid == 0) {
        while (!*over) {
            ++*beat;
            doze(500);
        }
        end_kid();
    }
    for (int turn = 0; turn < 3; turn++) {
        int status;
        doze(20000);
        SYS(kill(kid.pid, SIGSTOP));
        CHECK_EQ(SYS(waitpid(kid.pid, &status, WUNTRACED)), kid.pid, "waitpid of a stop");
        CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, "status of a stop: %#x", status);
        long seen = *beat;
        doze(100000);
        CHECK_EQ(*beat, seen, "what a stopped child does");
        /* A move in this very moment may forget that it goes on. */
        uint64_t begin = clock_ns(CLOCK_MONOTONIC);
        SYS(kill(kid.pid, SIGCONT));
        pid_t told = SYS(waitpid(kid.pid, &status, WCONTINUED | WNOHANG));
        CHECK(told || clock_ns(CLOCK_MONOTONIC) - begin > 1000000, "SIGCONT is not told");
        CHECK(!told || WIFCONTINUED(status), "status of a continued child: %#x", status);
        while (*beat == seen)
            doze(1000);
    }
    *over = 1;
    finish(&kid);
    unshare_page((void *)beat);
}

/* Children that have ended keep their status until they are waited for. */
static void act_zombies(void)
{
    enum { KIDS = 4 };
    struct kid kids[KIDS];
    int killed = (int)pick(KIDS + 1);
    for (int i = 0; i < KIDS; i++) {
        kids[i] = start();
        if (kids[i].pid == 0) {
            if (i == killed)
                raise(SIGKILL);
            end_kid();
        }
    }
    doze(200000);
    for (int i = 0; i < KIDS; i++) {
        siginfo_t info;
        int status;
        SYS(waitid(P_PID, (id_t)kids[i].pid, &info, WEXITED | WNOWAIT));
        CHECK_EQ(info.si_status, i == killed ? SIGKILL : kids[i].code, "status by waitid");
        doze(10000);
        CHECK_EQ(SYS(waitpid(kids[i].pid, &status, 0)), kids[i].pid, "waitpid of a zombie");
        CHECK_EQ(status, i == killed ? SIGKILL : kids[i].code << 8, "status of a zombie");
    }
}

/* The program again: argv[2] and argv[3] are its pid and its parent's, argv[4] its exit code. */
__attribute__((noreturn)) static void executed(char **argv)
{
    self.code = atoi(argv[4]);
    be_born((uint64_t)self.code);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(getpid(), atoi(argv[2]), "getpid after execve");
        CHECK_EQ(getppid(), atoi(argv[3]), "getppid after execve");
        doze(10000);
    }
    end_kid();
}

static void act_exec(void)
{
    struct kid kid = start();
    if (kid.pid == 0) {
        char pid[16], parent[16], code[16];
        snprintf(pid, sizeof(pid), "%d", getpid());
        snprintf(parent, sizeof(parent), "%d", getppid());
        snprintf(code, sizeof(code), "%d", self.code);
        doze(5000);
        SYS(execl("/proc/self/exe", "soak_tree", "executed", pid, parent, code, (char *)NULL));
    }
    finish(&kid);
}

/* A grandchild whose parent ends comes to this process, which is a subreaper meanwhile. */
static void act_orphan(void)
{
    struct kid *grandchild = share();
    pid_t reaper = self.pid;
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
    struct kid kid = start();
    if (kid.pid == 0) {
        struct kid own = start();
        if (own.pid == 0) {
            while (getppid() != reaper)
                CHECK_EQ(usleep(500), 0, "usleep");
            know_self();
            doze(100000);
            end_kid();
        }
        *grandchild = own;
        doze(20000);
        end_kid();
    }
    finish(&kid);
    finish(grandchild);
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 0));
    unshare_page(grandchild);
}

/* A session of two groups, each ended by one signal to the group. */
static void act_session(void)
{
    enum { KIDS = 2 };
    atomic_int *there = share();
    struct kid leader = start();
    if (leader.pid == 0) {
        struct kid kids[KIDS];
        SYS(setsid());
        know_self();
        CHECK_EQ(self.session, self.pid, "session of its leader");
        for (int i = 0; i < KIDS; i++) {
            kids[i] = start();
            if (kids[i].pid == 0) {
                SYS(setpgid(0, i == 0 ? 0 : kids[0].pid));
                know_self();
                atomic_fetch_add(there, 1);
                for (;;)
                    doze(5000);
            }
            while (atomic_load(there) <= i)
                doze(1000);
        }
        doze(100000);
        SYS(kill(-kids[0].pid, SIGTERM));
        for (int i = 0; i < KIDS; i++) {
            int status;
            CHECK_EQ(SYS(waitpid(-kids[0].pid, &status, 0)) > 0, 1, "waitpid of a group");
            CHECK_EQ(status, SIGTERM, "status of a member of the group");
        }
        end_kid();
    }
    finish(&leader);
    unshare_page(there);
}

struct token {
    pthread_mutex_t mutex;
    pthread_cond_t turned;
    int turn, rounds;
};

enum { RUNNERS = 3 };

static struct token token = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};

static void *runner(void *number)
{
    pthread_mutex_lock(&token.mutex);
    while (token.turn < token.rounds) {
        if (token.turn % RUNNERS == (int)(intptr_t)number) {
            token.turn++;
            pthread_cond_broadcast(&token.turned);
        } else {
            pthread_cond_wait(&token.turned, &token.mutex);
        }
        CHECK_EQ(getpid(), self.pid, "getpid of a thread");
    }
    pthread_mutex_unlock(&token.mutex);
    return number;
}

/* Threads of a child that do something in turns. */
static void act_threads(void)
{
    struct kid kid = start();
    if (kid.pid == 0) {
        pthread_t threads[RUNNERS];
        token.turn = 0;
        token.rounds = RUNNERS * (20 + (int)pick(200));
        for (intptr_t i = 0; i < RUNNERS; i++)
            CHECK_EQ(pthread_create(&threads[i], NULL, runner, (void *)i), 0, "pthread_create");
        doze(50000);
        for (intptr_t i = 0; i < RUNNERS; i++) {
            void *number;
            CHECK_EQ(pthread_join(threads[i], &number), 0, "pthread_join");
            CHECK_EQ((intptr_t)number, i, "what a thread returns");
        }
        CHECK_EQ(token.turn, token.rounds, "turns of the threads");
        end_kid();
    }
    finish(&kid);
}

/* Pages that both have had since fork(2) become each one's own; shared ones stay shared. */
static void act_memory(void)
{
    enum { SIZE = 32 * PAGE };
    uint64_t seed = draw();
    char *own = SYS(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    char *common = SYS(mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    guest_fill(own, SIZE, seed);
    struct kid kid = start();
    if (kid.pid == 0) {
        guest_fill(own, SIZE / 2, seed + 7);
        doze(50000);
        guest_fill(common, SIZE, seed + 9);
        guest_verify(own, SIZE / 2, seed + 7, "memory that was written after fork");
        guest_verify(own + SIZE / 2, SIZE / 2, seed + SIZE / 16, "memory since fork");
        end_kid();
    }
    doze(50000);
    guest_verify(own, SIZE, seed, "memory that a child has changed for itself");
    finish(&kid);
    guest_verify(common, SIZE, seed + 9, "shared memory");
    SYS(munmap(own, SIZE));
    SYS(munmap(common, SIZE));
}

extern char **environ;

/* Short programs one after another, by vfork(2) and posix_spawn(3). */
static void act_storm(void)
{
    for (int i = 0; i < 8; i++) {
        char text[16];
        struct kid kid = {.code = (int)pick(100)};
        snprintf(text, sizeof(text), "exit %d", kid.code);
        char *argv[] = {"sh", "-c", text, NULL};
        if (pick(2)) {
            CHECK_EQ(posix_spawn(&kid.pid, "/bin/sh", NULL, NULL, argv, environ), 0, "posix_spawn");
        } else {
            kid.pid = SYS(vfork());
            if (kid.pid == 0) {
                execv("/bin/sh", argv);
                _exit(127);
            }
        }
        finish(&kid);
    }
}

/* Numbers that are added up in an eventfd, beside a timer, waited for by epoll. */
static void act_events(void)
{
    int count = 10 + (int)pick(30), event = SYS(eventfd(0, EFD_NONBLOCK));
    uint64_t *sum = share();
    struct kid kid = start();
    if (kid.pid == 0) {
        int timer = SYS(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)), set = SYS(epoll_create1(0));
        struct itimerspec often = {{0, 3000000}, {0, 3000000}};
        uint64_t ticks = 0, got = 0, number, begin = clock_ns(CLOCK_MONOTONIC);
        SYS(timerfd_settime(timer, 0, &often, NULL));
        SYS(epoll_ctl(set, EPOLL_CTL_ADD, timer, &(struct epoll_event){EPOLLIN, {.fd = timer}}));
        SYS(epoll_ctl(set, EPOLL_CTL_ADD, event, &(struct epoll_event){EPOLLIN, {.fd = event}}));
        while (*sum == 0 || got < *sum) {
            struct epoll_event ready;
            CHECK_EQ(SYS(epoll_wait(set, &ready, 1, -1)), 1, "epoll_wait");
            if (read(ready.data.fd, &number, sizeof(number)) == sizeof(number))
                *(ready.data.fd == timer ? &ticks : &got) += number;
        }
        uint64_t took = clock_ns(CLOCK_MONOTONIC) - begin;
        /* A move may let a tick come a little early. */
        CHECK(ticks * 3000000 <= took + 5000000, "%llu ticks of 3 ms in %llu ns", (unsigned long long)ticks,
              (unsigned long long)took);
        CHECK_EQ(got, *sum, "sum of an eventfd");
        end_kid();
    }
    uint64_t total = 0;
    for (int i = 0; i < count; i++) {
        uint64_t number = 1 + pick(1000);
        put(event, &number, sizeof(number));
        total += number;
        doze(5000);
    }
    *sum = total;
    finish(&kid);
    close(event);
    unshare_page(sum);
}

/* Messages of System V, in their order. */
static void act_queue(void)
{
    struct {
        long type;
        uint64_t n;
    } m;
    int queue = SYS(msgget(IPC_PRIVATE, 0600)), count = 10 + (int)pick(40);
    struct kid kid = start();
    if (kid.pid == 0) {
        for (int i = 0; i < count; i++) {
            CHECK_EQ(SYS(msgrcv(queue, &m, sizeof(m.n), 0, 0)), sizeof(m.n), "msgrcv");
            CHECK_EQ(m.n, i, "number of a message of System V");
            CHECK_EQ(m.type, 1 + i % 7, "type of a message of System V");
            if (pick(4) == 0)
                doze(5000);
        }
        end_kid();
    }
    for (int i = 0; i < count; i++) {
        m.type = 1 + i % 7;
        m.n = (uint64_t)i;
        SYS(msgsnd(queue, &m, sizeof(m.n), 0));
        if (pick(4) == 0)
            doze(5000);
    }
    finish(&kid);
    SYS(msgctl(queue, IPC_RMID, NULL));
}

/* Connections to a listening socket, each told by a number who it is. */
static void act_listen(void)
{
    enum { KIDS = 3 };
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct kid kids[KIDS];
    char path[256];
    int listener = SYS(socket(AF_UNIX, SOCK_STREAM, 0)), place;
    own_path(path, sizeof(path), "socket");
    /* The path is longer than a name may be: by way of its folder. */
    *strrchr(path, '/') = 0;
    place = SYS(open(path, O_PATH | O_DIRECTORY));
    path[strlen(path)] = '/';
    snprintf(name.sun_path, sizeof(name.sun_path), "/proc/self/fd/%d%s", place, strrchr(path, '/'));
    SYS(bind(listener, (struct sockaddr *)&name, sizeof(name)));
    SYS(listen(listener, KIDS));
    for (int i = 0; i < KIDS; i++) {
        kids[i] = start();
        if (kids[i].pid)
            continue;
        int own = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
        uint64_t number;
        doze(20000);
        SYS(connect(own, (struct sockaddr *)&name, sizeof(name)));
        /* What waits to be accepted holds nothing: the other side begins. */
        CHECK(get(own, &number, sizeof(number)), "a connection without a word");
        number++;
        put(own, &number, sizeof(number));
        CHECK(!get(own, &number, sizeof(number)), "a word too many");
        end_kid();
    }
    for (uint64_t i = 0; i < KIDS; i++) {
        uint64_t number;
        doze(30000);
        int one = SYS(accept(listener, NULL, NULL));
        put(one, &i, sizeof(i));
        CHECK(get(one, &number, sizeof(number)), "a connection without an answer");
        CHECK_EQ(number, i + 1, "answer of a connection");
        close(one);
    }
    for (int i = 0; i < KIDS; i++)
        finish(&kids[i]);
    close(listener);
    close(place);
    SYS(unlink(path));
}

/* Lines through a terminal that a child has. */
static void act_terminal(void)
{
    struct termios raw;
    int master, slave, count = 5 + (int)pick(20);
    memset(&raw, 0, sizeof(raw));
    cfmakeraw(&raw);
    SYS(openpty(&master, &slave, NULL, &raw, NULL));
    struct kid kid = start();
    if (kid.pid == 0) {
        for (int i = 0; i < count; i++) {
            uint64_t number;
            CHECK(get(slave, &number, sizeof(number)), "the terminal has ended");
            number += (uint64_t)i;
            put(slave, &number, sizeof(number));
            if (pick(3) == 0)
                doze(5000);
        }
        end_kid();
    }
    for (int i = 0; i < count; i++) {
        uint64_t sent = draw() >> 8, number;
        put(master, &sent, sizeof(sent));
        CHECK(get(master, &number, sizeof(number)), "the terminal has ended");
        CHECK_EQ(number, sent + (uint64_t)i, "a number through a terminal");
    }
    finish(&kid);
    close(slave);
    close(master);
}
#endif
