/* The actions of all 64 signals with their flags and masks; each caught one works. */
#include "guest.h"

static struct sigaction set[65];
static volatile sig_atomic_t caught, code;

static void on_plain(int sig)
{
    caught = sig;
}

static void on_info(int sig, siginfo_t *info, void *context)
{
    (void)context;
    caught = sig;
    code = info->si_code;
}

static int settable(int sig)
{
    return sig != SIGKILL && sig != SIGSTOP && sig != 32 && sig != 33;
}

static void choose(int sig, struct sigaction *act)
{
    memset(act, 0, sizeof(*act));
    sigemptyset(&act->sa_mask);
    for (int other = 1; other <= 64; other++)
        if ((sig * 7 + other) % 5 == 0 && settable(other))
            sigaddset(&act->sa_mask, other);
    switch (sig % 4) {
    case 0:
        act->sa_handler = SIG_IGN;
        break;
    case 1:
        act->sa_handler = on_plain;
        act->sa_flags = SA_RESTART | SA_ONSTACK;
        break;
    case 2:
        act->sa_sigaction = on_info;
        act->sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
        break;
    default:
        act->sa_handler = SIG_DFL;
        act->sa_flags = sig == SIGCHLD ? SA_NOCLDSTOP | SA_NOCLDWAIT : 0;
    }
}

static void check_one(int sig)
{
    struct sigaction now;
    SYS(sigaction(sig, NULL, &now));
    CHECK(now.sa_handler == set[sig].sa_handler, "handler of signal %d", sig);
    CHECK_EQ(now.sa_flags & ~0x04000000, set[sig].sa_flags & ~0x04000000, "flags of an action");
    for (int other = 1; other <= 64; other++)
        if (settable(other))
            CHECK(sigismember(&now.sa_mask, other) == sigismember(&set[sig].sa_mask, other),
                  "mask of signal %d, bit %d", sig, other);
}

int main(void)
{
    guest_begin();
    for (int sig = 1; sig <= 64; sig++)
        if (settable(sig)) {
            choose(sig, &set[sig]);
            SYS(sigaction(sig, &set[sig], NULL));
        }
    guest_ready();
    do {
        for (int sig = 1; sig <= 64; sig++) {
            if (!settable(sig))
                continue;
            check_one(sig);
            if (set[sig].sa_handler == SIG_DFL)
                continue;
            caught = 0;
            raise(sig);
            CHECK_EQ(caught, set[sig].sa_handler == SIG_IGN ? 0 : sig, "the signal that was raised");
        }
    } while (guest_running());
    guest_success();
}
