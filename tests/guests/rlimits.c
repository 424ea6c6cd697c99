/* Resource limits of each process of a tree, all of them, set by itself or by its parent
 * (prlimit(2)); and more signals pending than RLIMIT_SIGPENDING allows by now. */
#include "each.h"
#include <sys/resource.h>

static struct rlimit own[RLIM_NLIMITS];

/* Below what it has, so that it is granted to anybody; high enough to live with. */
static struct rlimit wanted(int n, int which)
{
    static const rlim_t SOFT[RLIM_NLIMITS] = {
        [RLIMIT_CPU] = 1000,       [RLIMIT_FSIZE] = 1 << 30,    [RLIMIT_DATA] = 1ULL << 40,
        [RLIMIT_STACK] = 4 << 20,  [RLIMIT_CORE] = 4096,        [RLIMIT_RSS] = 1ULL << 40,
        [RLIMIT_NPROC] = 100000,   [RLIMIT_NOFILE] = 700,       [RLIMIT_MEMLOCK] = 1 << 16,
        [RLIMIT_AS] = 1ULL << 45,  [RLIMIT_LOCKS] = 500,        [RLIMIT_SIGPENDING] = 300,
        [RLIMIT_MSGQUEUE] = 81920, [RLIMIT_NICE] = 0,           [RLIMIT_RTPRIO] = 0,
        [RLIMIT_RTTIME] = 5000000,
    };
    struct rlimit limit = own[which];
    rlim_t soft = SOFT[which] + (rlim_t)n * (which == RLIMIT_NICE || which == RLIMIT_RTPRIO ? 0 : 16);
    if (soft < limit.rlim_max)
        limit.rlim_cur = soft;
    /* Every second one cannot be raised again. */
    if (which % 2 == n % 2)
        limit.rlim_max = limit.rlim_cur;
    return limit;
}

static void setup(int n)
{
    for (int which = 0; which < RLIM_NLIMITS; which++) {
        struct rlimit limit = wanted(n, which);
        SYS(setrlimit(which, &limit));
    }
}

static void check(int n)
{
    for (int which = 0; which < RLIM_NLIMITS; which++) {
        struct rlimit now, want = wanted(n, which);
        SYS(getrlimit(which, &now));
        CHECK(now.rlim_cur == want.rlim_cur && now.rlim_max == want.rlim_max,
              "limit %d: %lld %lld, should be %lld %lld", which, (long long)now.rlim_cur,
              (long long)now.rlim_max, (long long)want.rlim_cur, (long long)want.rlim_max);
    }
}

enum { QUEUED = 20, PARENTS_GIFT = 3, SIGNAL = 40 };

static void wait_for_gift(int n)
{
    struct rlimit now = {0, 0};
    (void)n;
    while (now.rlim_cur != 555)
        SYS(getrlimit(RLIMIT_NOFILE, &now));
}

static void check_gift(int n)
{
    struct rlimit now;
    (void)n;
    SYS(getrlimit(RLIMIT_NOFILE, &now));
    CHECK(now.rlim_cur == 555 && now.rlim_max == 600, "the limit that the parent has set");
}

int main(void)
{
    guest_begin();
    for (int which = 0; which < RLIM_NLIMITS; which++)
        SYS(getrlimit(which, &own[which]));
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGNAL);
    SYS(sigprocmask(SIG_BLOCK, &blocked, NULL));
    for (int i = 0; i < QUEUED; i++)
        SYS(sigqueue(getpid(), SIGNAL, (union sigval){.sival_int = i}));
    struct rlimit few = {2, own[RLIMIT_SIGPENDING].rlim_max};
    SYS(setrlimit(RLIMIT_SIGPENDING, &few));
    family_begin();
    for (int n = 0; n < PARENTS_GIFT; n++)
        family_child(setup, check);
    /* The last child is forked before it is given its limit. */
    int n = family->count;
    pid_t pid = SYS(fork());
    if (pid == 0) {
        wait_for_gift(n);
        family->beats[n] = 1;
        while (!family->over) {
            check_gift(n);
            family->beats[n]++;
            usleep(500);
        }
        _exit(0);
    }
    family->pids[n] = pid;
    family->count++;
    struct rlimit gift = {555, 600};
    SYS(prlimit(pid, RLIMIT_NOFILE, &gift, NULL));
    while (!family->beats[n])
        usleep(500);
    guest_ready();
    do {
        struct rlimit now;
        family_turn();
        SYS(getrlimit(RLIMIT_SIGPENDING, &now));
        CHECK_EQ(now.rlim_cur, 2, "RLIMIT_SIGPENDING");
    } while (guest_running());
    for (int i = 0; i < QUEUED; i++) {
        siginfo_t info;
        CHECK_EQ(sigtimedwait(&blocked, &info, &(struct timespec){0}), SIGNAL, "a queued signal");
        CHECK_EQ(info.si_value.sival_int, i, "its value");
    }
    family_end();
    guest_success();
}
