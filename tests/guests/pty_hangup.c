/* Sessions on ptys end with their terminal: closing the master sends SIGHUP to the leader, reads
 * of the slave end. A new one is made each turn. */
#include "pty.h"
#include <pty.h>
#include <sys/wait.h>

static volatile sig_atomic_t hung;

static void on_hup(int sig)
{
    hung = sig;
}

__attribute__((noreturn)) static void serve(void)
{
    struct sigaction act = {.sa_handler = on_hup};
    char byte;
    SYS(sigaction(SIGHUP, &act, NULL));
    pty_say(1, "ready");
    while (!hung)
        if (read(0, &byte, 1) <= 0 && errno != EINTR)
            break;
    while (!hung)
        usleep(100);
    CHECK(read(0, &byte, 1) == 0, "a terminal that hung up is read");
    CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO, "a session keeps its dead terminal");
    _exit(9);
}

int main(void)
{
    guest_begin();
    guest_ready();
    do {
        int master, status;
        pid_t pid = SYS(forkpty(&master, NULL, NULL, NULL));
        if (pid == 0)
            serve();
        pty_expect(master, "ready", 5, "word of the child");
        guest_running();
        CHECK_EQ(waitpid(pid, &status, WNOHANG), 0, "the child has ended");
        SYS(close(master));
        SYS(waitpid(pid, &status, 0));
        CHECK_EQ(status, 9 << 8, "status of the child");
    } while (guest_running());
    guest_success();
}
