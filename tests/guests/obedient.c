/* Counts SIGUSR1 in the first line of `$GUEST_STATUS.usr1`, SIGRTMIN in the second; ends with status 7 at SIGTERM; ends by the signal
 * itself at SIGINT and SIGKILL. */
#include "guest.h"

static volatile sig_atomic_t usr1, realtime, term;

static void on_signal(int sig)
{
    if (sig == SIGUSR1)
        usr1++;
    else if (sig == SIGRTMIN)
        realtime++;
    else
        term = 1;
}

int main(void)
{
    guest_begin();
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    SYS(sigaction(SIGUSR1, &act, NULL));
    SYS(sigaction(SIGRTMIN, &act, NULL));
    SYS(sigaction(SIGTERM, &act, NULL));
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGTERM);
    char path[256], text[32];
    int fd = SYS(open(guest_path(path, sizeof(path), "usr1"), O_WRONLY | O_CREAT, 0644));
    guest_ready();
    int more = 1;
    while (more && !term) {
        int n = snprintf(text, sizeof(text), "%d\n%d\n", (int)usr1, (int)realtime);
        CHECK_EQ(pwrite(fd, text, (size_t)n, 0), n, "write of the count");
        /* The turn's nap must not see these signals. */
        sigprocmask(SIG_BLOCK, &set, NULL);
        more = guest_running();
        sigprocmask(SIG_UNBLOCK, &set, NULL);
    }
    if (term)
        _exit(7);
    guest_success();
}
