/* oom_score_adj and coredump_filter of each process of a tree. */
#include "each.h"
#include <linux/capability.h>

static const char *const SCORES[] = {"100\n", "1000\n", "567\n", "0\n", "-999\n"};
static const char *const FILTERS[] = {"00000033\n", "00000000\n", "0000007f\n", "00000001\n", "00000033\n"};

static void put(const char *file, const char *text)
{
    int fd = SYS(open(file, O_WRONLY | O_CLOEXEC));
    CHECK_EQ(write(fd, text, strlen(text)), (ssize_t)strlen(text), file);
    SYS(close(fd));
}

static void same(const char *file, const char *want)
{
    char now[32];
    guest_slurp(file, now, sizeof(now));
    CHECK(!strcmp(now, want), "%s: %s, should be %s", file, now, want);
}

static void setup(int n)
{
    char filter[32];
    put("/proc/self/oom_score_adj", SCORES[n]);
    snprintf(filter, sizeof(filter), "0x%s", FILTERS[n]);
    put("/proc/self/coredump_filter", filter);
}

static void check(int n)
{
    same("/proc/self/oom_score_adj", SCORES[n]);
    same("/proc/self/coredump_filter", FILTERS[n]);
}

int main(void)
{
    guest_begin();
    each_hold(has_capability(CAP_SYS_RESOURCE) ? 5 : 3, 0, setup, check);
    guest_success();
}
