/* Job control: a shell on a pty with a group in the foreground and one in the background. Keys
 * stop and interrupt the one in the foreground; who reads in the background is stopped. */
#include "pty.h"
#include <pty.h>
#include <sys/wait.h>

static volatile sig_atomic_t interrupted;

static void on_int(int sig)
{
    interrupted = sig;
}

static void await(pid_t pid, int want, const char *what)
{
    int status = -1;
    SYS(waitpid(pid, &status, WUNTRACED));
    CHECK_EQ(status, want, what);
}

/* Answers each line, until it is interrupted. */
__attribute__((noreturn)) static void answer(char name)
{
    char line[64], text[80];
    struct sigaction act = {.sa_handler = on_int};
    SYS(setpgid(0, 0));
    signal(SIGTSTP, SIG_DFL);
    SYS(sigaction(SIGINT, &act, NULL));
    while (!interrupted) {
        ssize_t n = read(0, line, sizeof(line));
        if (n == 0 || (n < 0 && errno != EINTR))
            _exit(6); /* the terminal is gone */
        if (n > 0) {
            int len = snprintf(text, sizeof(text), "%c:%.*s", name, (int)n, line);
            SYS(write(1, text, (size_t)len));
        }
    }
    _exit(5);
}

static pid_t start(char name)
{
    pid_t pid = SYS(fork());
    if (pid == 0)
        answer(name);
    setpgid(pid, pid);
    return pid;
}

__attribute__((noreturn)) static void shell(void)
{
    const int stopped_by_key = SIGTSTP << 8 | 0x7f, stopped_by_read = SIGTTIN << 8 | 0x7f;
    signal(SIGTTOU, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    pid_t front = start('f'), back = start('b');
    SYS(tcsetpgrp(0, front));
    await(back, stopped_by_read, "a reader in the background");
    for (;;) {
        pty_say(1, "front\n");
        SYS(kill(-front, SIGCONT));
        await(front, stopped_by_key, "the foreground after ^Z");
        SYS(tcsetpgrp(0, back));
        pty_say(1, "back\n");
        SYS(kill(-back, SIGCONT));
        int status;
        SYS(waitpid(back, &status, WUNTRACED));
        CHECK_EQ(status, 5 << 8, "the foreground after ^C");
        back = start('b');
        SYS(tcsetpgrp(0, front));
        await(back, stopped_by_read, "the next reader in the background");
    }
}

static void ask(int master, const char *word)
{
    char want[64];
    snprintf(want, sizeof(want), "%s\n", word + 2);
    pty_say(master, want);
    snprintf(want, sizeof(want), "%s\n", word);
    pty_expect(master, want, strlen(want), "answer");
}

int main(void)
{
    guest_begin();
    int master;
    struct termios modes;
    pid_t pid = SYS(forkpty(&master, NULL, NULL, NULL));
    if (pid == 0) {
        SYS(tcgetattr(0, &modes));
        modes.c_lflag &= ~(tcflag_t)(ECHO | ECHOCTL);
        modes.c_oflag &= ~(tcflag_t)OPOST;
        SYS(tcsetattr(0, TCSANOW, &modes));
        shell();
    }
    guest_ready();
    do {
        pty_expect(master, "front\n", 6, "the shell");
        ask(master, "f:one");
        guest_running();
        ask(master, "f:two");
        pty_say(master, "\x1a");
        pty_expect(master, "back\n", 5, "the shell");
        guest_running();
        ask(master, "b:three");
        guest_running();
        pty_say(master, "\x03");
    } while (guest_running());
    SYS(close(master));
    int status;
    SYS(waitpid(pid, &status, 0));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP, "the shell ended with %#x", status);
    guest_success();
}
