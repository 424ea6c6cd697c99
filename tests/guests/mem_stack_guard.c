/* Stacks: content, growth of the main stack after a move, a thread's guard page that faults
 * into a handler on the alternate stack. */
#include "guest.h"
#include <pthread.h>
#include <setjmp.h>

static sigjmp_buf back;
static volatile uintptr_t fault_at;

static void on_segv(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    fault_at = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}

/* Uses DEPTH frames of 4 KiB and checks each on the way back. */
static __attribute__((noinline)) void dig(unsigned depth)
{
    volatile uint64_t frame[512];
    for (unsigned i = 0; i < 512; i++)
        frame[i] = guest_mix(depth * 512 + i);
    if (depth)
        dig(depth - 1);
    for (unsigned i = 0; i < 512; i++)
        CHECK(frame[i] == guest_mix(depth * 512 + i), "stack frame %u changed", depth);
}

static uintptr_t guard_low, guard_high;

static void touch_guard(void)
{
    if (!sigsetjmp(back, 1)) {
        *(volatile char *)(guard_high - 8) = 1;
        fail("no fault at the guard page");
    }
    CHECK(fault_at >= guard_low && fault_at < guard_high, "fault at %#lx, guard is %#lx-%#lx",
          fault_at, guard_low, guard_high);
}

static void *thread(void *unused)
{
    (void)unused;
    pthread_attr_t attr;
    void *base;
    size_t size, guard;
    pthread_getattr_np(pthread_self(), &attr);
    pthread_attr_getstack(&attr, &base, &size);
    pthread_attr_getguardsize(&attr, &guard);
    guard_low = (uintptr_t)base - guard;
    guard_high = (uintptr_t)base;
    static char alt[64 * 1024];
    stack_t stack = {.ss_sp = alt, .ss_size = sizeof(alt)};
    SYS(sigaltstack(&stack, NULL));
    guest_ready();
    while (guest_running()) {
        touch_guard();
        dig(100);
    }
    return NULL;
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    SYS(sigaction(SIGSEGV, &act, NULL));
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setguardsize(&attr, 16 * PAGE);
    pthread_t id;
    CHECK_EQ(pthread_create(&id, &attr, thread, NULL), 0, "pthread_create");
    pthread_join(id, NULL);
    /* The main stack was small when it moved: now it grows by 6 MiB. */
    dig(1500);
    guest_success();
}
