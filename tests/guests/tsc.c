/* PR_SET_TSC: a thread that may not read the time-stamp counter gets SIGSEGV, others read it. */
#include "each.h"
#include <setjmp.h>
#include <sys/prctl.h>

static __thread sigjmp_buf back;

static void on_segv(int sig)
{
    siglongjmp(back, sig);
}

static void setup(int n)
{
    SYS(prctl(PR_SET_TSC, n % 2 ? PR_TSC_SIGSEGV : PR_TSC_ENABLE));
}

static void check(int n)
{
    int now, faulted = sigsetjmp(back, 1);
    if (!faulted)
        __builtin_ia32_rdtsc();
    CHECK_EQ(faulted, n % 2 ? SIGSEGV : 0, "what rdtsc does");
    SYS(prctl(PR_GET_TSC, &now));
    CHECK_EQ(now, n % 2 ? PR_TSC_SIGSEGV : PR_TSC_ENABLE, "PR_GET_TSC");
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_segv};
    SYS(sigaction(SIGSEGV, &act, NULL));
    each_hold(4, 1, setup, check);
    guest_success();
}
