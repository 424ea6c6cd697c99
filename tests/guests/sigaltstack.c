/* Alternate signal stacks of two threads, one with SS_AUTODISARM; one thread moves while it
 * is on its alternate stack. */
#include "guest.h"
#include <pthread.h>

#ifndef SS_AUTODISARM
#define SS_AUTODISARM (1U << 31)
#endif
#define SIZE (64 * 1024)

static char *stacks[2];
static volatile int ending;

static void check_stack(int number, int flags, const char *who)
{
    stack_t now;
    SYS(sigaltstack(NULL, &now));
    CHECK(now.ss_sp == stacks[number] && now.ss_size == SIZE, "%s: stack %p of %zu", who, now.ss_sp,
          now.ss_size);
    CHECK_EQ(now.ss_flags, flags, who);
}

static void on_main(int sig)
{
    char here;
    (void)sig;
    CHECK(&here > stacks[0] && &here < stacks[0] + SIZE, "the handler is not on its stack");
    check_stack(0, SS_ONSTACK, "in the handler");
}

/* Stays in the handler, on the alternate stack, until the end. */
static void on_thread(int sig)
{
    char here;
    (void)sig;
    stack_t now;
    while (!ending) {
        CHECK(&here > stacks[1] && &here < stacks[1] + SIZE, "the thread left its stack");
        SYS(sigaltstack(NULL, &now));
        CHECK_EQ(now.ss_flags, SS_DISABLE, "flags of a disarmed stack");
        usleep(1000);
    }
}

static void *thread(void *unused)
{
    stack_t stack = {.ss_sp = stacks[1], .ss_size = SIZE, .ss_flags = (int)SS_AUTODISARM};
    SYS(sigaltstack(&stack, NULL));
    pthread_kill(pthread_self(), SIGUSR2);
    check_stack(1, (int)SS_AUTODISARM, "after the handler");
    return unused;
}

int main(void)
{
    guest_begin();
    for (int i = 0; i < 2; i++)
        stacks[i] = malloc(SIZE);
    stack_t stack = {.ss_sp = stacks[0], .ss_size = SIZE};
    SYS(sigaltstack(&stack, NULL));
    struct sigaction act = {.sa_handler = on_main, .sa_flags = SA_ONSTACK};
    SYS(sigaction(SIGUSR1, &act, NULL));
    act.sa_handler = on_thread;
    SYS(sigaction(SIGUSR2, &act, NULL));
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, thread, NULL), 0, "pthread_create");
    guest_ready();
    do {
        check_stack(0, 0, "outside the handler");
        raise(SIGUSR1);
    } while (guest_running());
    ending = 1;
    pthread_join(id, NULL);
    guest_success();
}
