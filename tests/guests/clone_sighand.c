/* Two processes with one memory and one table of signal handlers (CLONE_SIGHAND of clone(2)), each
 * with a signal mask and pending signals of its own. */
#include "shared.h"

static volatile sig_atomic_t first, second;

static void on_first(int signal)
{
    (void)signal;
    first++;
}

static void on_second(int signal)
{
    (void)signal;
    second++;
}

static void handle(int signal, void (*handler)(int))
{
    struct sigaction action = {.sa_handler = handler};
    SYS(sigaction(signal, &action, NULL));
}

static void *handler_of(int signal)
{
    struct sigaction action;
    SYS(sigaction(signal, NULL, &action));
    return (void *)action.sa_handler;
}

static int blocks(int signal)
{
    sigset_t mask;
    SYS(sigprocmask(SIG_SETMASK, NULL, &mask));
    return sigismember(&mask, signal);
}

static void partner(long turn)
{
    if (turn == 1) {
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR2);
        SYS(sigprocmask(SIG_BLOCK, &mask, NULL));
    }
    CHECK_EQ(blocks(SIGUSR2), 1, "its own mask");
    CHECK_EQ(handler_of(SIGUSR1) == (turn % 2 ? (void *)on_first : (void *)on_second), 1,
             "the handler that the other one has set");
    long before = first + second;
    SYS(kill(getpid(), SIGUSR1));
    CHECK_EQ(first + second, before + 1, "handled");
    handle(SIGUSR1, SIG_IGN);
    handle(SIGUSR2, turn % 2 ? on_second : on_first);
}

static void witness(long turn)
{
    (void)turn;
    CHECK_EQ(handler_of(SIGUSR1) == (void *)SIG_DFL, 1, "the copy");
    CHECK_EQ(handler_of(SIGUSR2) == (void *)SIG_DFL, 1, "the copy");
}

static void turn(long n)
{
    handle(SIGUSR1, n % 2 ? on_first : on_second);
    shared_turn(n);
    CHECK_EQ(handler_of(SIGUSR1) == (void *)SIG_IGN, 1, "the partner ignores it");
    CHECK_EQ(handler_of(SIGUSR2) == (n % 2 ? (void *)on_second : (void *)on_first), 1,
             "the handler that the partner has set");
    CHECK_EQ(blocks(SIGUSR2), 0, "its own mask");
    long before = first + second;
    SYS(kill(getpid(), SIGUSR2));
    CHECK_EQ(first + second, before + 1, "handled");
}

int main(void)
{
    guest_begin();
    shared_begin();
    pid_t apart = shared_witness(witness);
    pid_t other = shared_partner(CLONE_VM | CLONE_SIGHAND, partner);
    shared_turns(turn);
    shared_end(other, apart);
    guest_success();
}
