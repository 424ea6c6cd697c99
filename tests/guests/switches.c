/* PR_MCE_KILL, PR_SET_IO_FLUSHER and speculation of each thread; PR_SET_THP_DISABLE and
 * PR_SET_MEMORY_MERGE of each process. */
#include "each.h"
#include <linux/capability.h>
#include <sys/prctl.h>

enum { IO_FLUSHER = 57, MEMORY_MERGE = 67, THP_DISABLE = 41, THP_EXCEPT_ADVISED = 2, CONTROLS = 3 };

static __thread long speculation[CONTROLS];
static int privileged;
static __thread int merges, except_advised;

static long get(int option)
{
    return prctl(option, 0, 0, 0, 0);
}

static void setup_thread(int n)
{
    SYS(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, n % 3, 0, 0));
    if (privileged)
        SYS(prctl(IO_FLUSHER, n % 2, 0, 0, 0));
    for (int i = 0; i < CONTROLS; i++) {
        speculation[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
        if (n % 2 && speculation[i] > 0 && speculation[i] & PR_SPEC_PRCTL)
            prctl(PR_SET_SPECULATION_CTRL, i, PR_SPEC_DISABLE, 0, 0);
        speculation[i] = prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0);
    }
}

static void check_thread(int n)
{
    CHECK_EQ(get(PR_MCE_KILL_GET), n % 3, "PR_MCE_KILL_GET");
    CHECK_EQ(get(IO_FLUSHER + 1), privileged ? n % 2 : -1, "PR_GET_IO_FLUSHER");
    for (int i = 0; i < CONTROLS; i++)
        CHECK_EQ(prctl(PR_GET_SPECULATION_CTRL, i, 0, 0, 0), speculation[i], "PR_GET_SPECULATION_CTRL");
}

/* A family of threads cannot hold what is of the whole memory: see `setup_process`. */
static void setup_process(int n)
{
    setup_thread(n);
    except_advised = n == 2 && !prctl(THP_DISABLE, 1, THP_EXCEPT_ADVISED, 0, 0);
    if (n == 1)
        SYS(prctl(THP_DISABLE, 1, 0, 0, 0));
    merges = privileged && n % 2 && !prctl(MEMORY_MERGE, 1, 0, 0, 0);
}

static void check_process(int n)
{
    check_thread(n);
    CHECK_EQ(get(THP_DISABLE + 1), n == 1 ? 1 : except_advised ? 3 : 0, "PR_GET_THP_DISABLE");
    CHECK_EQ(get(MEMORY_MERGE + 1) > 0, merges, "PR_GET_MEMORY_MERGE");
}

static void setup(int n)
{
    if (gettid() == getpid())
        setup_process(n);
    else
        setup_thread(n);
}

static void check(int n)
{
    if (gettid() == getpid())
        check_process(n);
    else
        check_thread(n);
}

int main(void)
{
    guest_begin();
    privileged = has_capability(CAP_SYS_RESOURCE);
    each_hold(4, 1, setup, check);
    guest_success();
}
