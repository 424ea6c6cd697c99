/* Calls that go to the program itself (PR_SET_SYSCALL_USER_DISPATCH): by a selector that is in its
 * memory, and those that are made in one page. Each thread and each process has its own. */
#include "each.h"
#include <sys/prctl.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif
enum { EXCLUSIVE_ON = 1, INCLUSIVE_ON = 2, ALLOW = 0, BLOCK = 1, ANSWER = 4711 };

static __thread volatile char selector;
static __thread volatile int dispatched;
/* `mov eax, edi; syscall; ret` */
static const unsigned char CODE[] = {0x89, 0xf8, 0x0f, 0x05, 0xc3};
static long (*in_page)(long number);

static void on_sys(int sig, siginfo_t *info, void *context)
{
    selector = ALLOW;
    (void)sig;
    dispatched = info->si_syscall;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = ANSWER;
}

static void setup(int n)
{
    if (n == 0)
        SYS(prctl(PR_SET_SYSCALL_USER_DISPATCH, EXCLUSIVE_ON, 0, 0, &selector));
    else if (n == 1 && prctl(PR_SET_SYSCALL_USER_DISPATCH, INCLUSIVE_ON, in_page, PAGE, 0))
        /* Before Linux 6.16: all but what is below the page. */
        SYS(prctl(PR_SET_SYSCALL_USER_DISPATCH, EXCLUSIVE_ON, 0, in_page, &selector));
}

static long raw_call(long number)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number) : "rcx", "r11", "memory");
    return result;
}

static void spin(void)
{
    for (volatile int i = 0; i < 100000; i++)
        ;
}

static void check(int n)
{
    dispatched = 0;
    if (n == 0) {
        selector = BLOCK;
        /* No call may be made in this time, by nobody. */
        spin();
        CHECK_EQ(raw_call(SYS_getppid), ANSWER, "a call with the selector on");
        CHECK_EQ(dispatched, SYS_getppid, "the call");
        CHECK_EQ(raw_call(SYS_getppid), getppid(), "a call with the selector off");
    } else if (n == 1) {
        selector = BLOCK;
        CHECK_EQ(in_page(SYS_getuid), ANSWER, "a call in the page");
        CHECK_EQ(dispatched, SYS_getuid, "the call");
    } else {
        selector = BLOCK;
        CHECK_EQ(in_page(SYS_getuid), (long)getuid(), "a call of one without dispatch");
        CHECK_EQ(raw_call(SYS_getppid), getppid(), "a call of one without dispatch");
        CHECK_EQ(dispatched, 0, "a dispatched call");
    }
    selector = ALLOW;
}

int main(void)
{
    guest_begin();
    if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0))
        skip("no PR_SET_SYSCALL_USER_DISPATCH");
    struct sigaction act = {.sa_sigaction = on_sys, .sa_flags = SA_SIGINFO};
    SYS(sigaction(SIGSYS, &act, NULL));
    void *page = SYS(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    memcpy(page, CODE, sizeof(CODE));
    SYS(mprotect(page, PAGE, PROT_READ | PROT_EXEC));
    in_page = (long (*)(long))page;
    each_hold(3, 1, setup, check);
    guest_success();
}
