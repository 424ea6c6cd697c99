/* What a process is and may: user, groups, capabilities, umask, directory, priority,
 * scheduling, affinity, personality, prctl settings, name and limits. Each is taken before
 * and compared after. */
#include "guest.h"
#include <grp.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#ifndef PR_GET_THP_DISABLE
#define PR_SET_THP_DISABLE 41
#define PR_GET_THP_DISABLE 42
#endif
#define LINES 96

static char before[LINES][512], after[LINES][512];
static int lines;

__attribute__((format(printf, 2, 3))) static void note(char (*to)[512], const char *format, ...)
{
    va_list args;
    va_start(args, format);
    CHECK(lines < LINES, "too many lines");
    vsnprintf(to[lines++], 512, format, args);
    va_end(args);
}

static void note_status(char (*to)[512])
{
    static const char *const names[] = {"Name",   "Umask",  "Uid",    "Gid",      "Groups",
                                        "CapInh", "CapPrm", "CapEff", "CapBnd",   "CapAmb",
                                        "NoNewPrivs", "SigIgn", "SigCgt", "Cpus_allowed"};
    char text[400];
    for (size_t i = 0; i < COUNT(names); i++) {
        guest_proc_status(names[i], text, sizeof(text));
        note(to, "%s %s", names[i], text);
    }
}

static void note_prctl(char (*to)[512])
{
    static const struct {
        const char *name;
        int op;
    } gets[] = {{"dumpable", PR_GET_DUMPABLE},      {"keepcaps", PR_GET_KEEPCAPS},
                {"no_new_privs", PR_GET_NO_NEW_PRIVS}, {"securebits", PR_GET_SECUREBITS},
                {"timerslack", PR_GET_TIMERSLACK},  {"thp_disable", PR_GET_THP_DISABLE}};
    for (size_t i = 0; i < COUNT(gets); i++)
        note(to, "%s %d", gets[i].name, prctl(gets[i].op, 0, 0, 0, 0));
    int value = -1;
    SYS(prctl(PR_GET_PDEATHSIG, &value));
    note(to, "pdeathsig %d", value);
    SYS(prctl(PR_GET_CHILD_SUBREAPER, &value));
    note(to, "child_subreaper %d", value);
    note(to, "personality %#x", (unsigned)personality(0xffffffff));
}

static void note_sched(char (*to)[512])
{
    struct sched_param param;
    SYS(sched_getparam(0, &param));
    note(to, "policy %d, priority %d", sched_getscheduler(0), param.sched_priority);
    errno = 0;
    note(to, "nice %d", getpriority(PRIO_PROCESS, 0));
    note(to, "ioprio %ld", syscall(SYS_ioprio_get, 1, 0));
    cpu_set_t cpus;
    SYS(sched_getaffinity(0, sizeof(cpus), &cpus));
    note(to, "affinity of %d processors", CPU_COUNT(&cpus));
    char adjust[32];
    guest_slurp("/proc/self/oom_score_adj", adjust, sizeof(adjust));
    note(to, "oom_score_adj %s", adjust);
}

static void note_all(char (*to)[512])
{
    lines = 0;
    uid_t uids[3];
    gid_t gids[3], groups[64];
    getresuid(&uids[0], &uids[1], &uids[2]);
    getresgid(&gids[0], &gids[1], &gids[2]);
    note(to, "uids %u %u %u", uids[0], uids[1], uids[2]);
    note(to, "gids %u %u %u", gids[0], gids[1], gids[2]);
    note(to, "groups %d", getgroups(64, groups));
    char cwd[400];
    CHECK(getcwd(cwd, sizeof(cwd)), "getcwd: %s", strerror(errno));
    note(to, "cwd %s", cwd);
    note_status(to);
    note_prctl(to);
    note_sched(to);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        SYS(getrlimit(i, &limit));
        note(to, "limit %d: %lld %lld", i, (long long)limit.rlim_cur, (long long)limit.rlim_max);
    }
}

static void lower_limit(int which, rlim_t soft)
{
    struct rlimit limit;
    SYS(getrlimit(which, &limit));
    if (limit.rlim_max != RLIM_INFINITY && soft > limit.rlim_max)
        soft = limit.rlim_max;
    limit.rlim_cur = soft;
    SYS(setrlimit(which, &limit));
}

/* Values that a fresh process would not have. All are allowed to an ordinary user. */
static void change_all(void)
{
    char dir[256];
    SYS(mkdir(guest_path(dir, sizeof(dir), "cwd"), 0755));
    SYS(chdir(dir));
    umask(0031);
    SYS(prctl(PR_SET_NAME, "a new name"));
    SYS(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    SYS(prctl(PR_SET_TIMERSLACK, 123456, 0, 0, 0));
    SYS(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    SYS(prctl(PR_SET_PDEATHSIG, SIGUSR1));
    SYS(prctl(PR_SET_CHILD_SUBREAPER, 1));
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
        CHECK(errno == EINVAL, "PR_SET_THP_DISABLE: %s", strerror(errno));
    SYS(setpriority(PRIO_PROCESS, 0, 5));
    /* Who was started with SCHED_IDLE may not leave it. */
    if (sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}))
        CHECK(errno == EPERM, "SCHED_BATCH: %s", strerror(errno));
    SYS(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
    SYS(personality((unsigned long)personality(0xffffffff) | ADDR_NO_RANDOMIZE));
    lower_limit(RLIMIT_CORE, 0);
    lower_limit(RLIMIT_NOFILE, 777);
    lower_limit(RLIMIT_STACK, 6 << 20);
    lower_limit(RLIMIT_SIGPENDING, 555);
    lower_limit(RLIMIT_FSIZE, 1 << 30);
    int fd = SYS(open("/proc/self/oom_score_adj", O_WRONLY));
    if (write(fd, "321", 3) != 3)
        CHECK(errno == EACCES, "oom_score_adj: %s", strerror(errno));
    SYS(close(fd));
    cpu_set_t all, one;
    SYS(sched_getaffinity(0, sizeof(all), &all));
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            CPU_SET(cpu, &one);
            break;
        }
    SYS(sched_setaffinity(0, sizeof(one), &one));
}

int main(void)
{
    guest_begin();
    signal(SIGUSR1, SIG_IGN);
    change_all();
    note_all(before);
    guest_ready();
    /* A file of /proc that is open keeps a job from moving, so it is read after the moves. */
    while (guest_running())
        ;
    note_all(after);
    for (int i = 0; i < lines; i++)
        CHECK(!strcmp(before[i], after[i]), "was: %s, is: %s", before[i], after[i]);
    char cwd[400];
    CHECK(getcwd(cwd, sizeof(cwd)), "getcwd: %s", strerror(errno));
    SYS(rmdir(cwd));
    guest_success();
}
