/* A session on a pty whose leader has a session on another pty, as in tmux or script: who leads,
 * which groups are in the foreground, and the names, through both. A third comes and goes. */
#include "pty.h"
#include <pty.h>
#include <sys/wait.h>

static void plain(int fd)
{
    struct termios modes;
    SYS(tcgetattr(fd, &modes));
    modes.c_lflag &= ~(tcflag_t)ECHO;
    modes.c_oflag &= ~(tcflag_t)OPOST;
    SYS(tcsetattr(fd, TCSANOW, &modes));
}

/* Says who it is for each line that comes. */
__attribute__((noreturn)) static void leaf(void)
{
    char line[64], name[64];
    ssize_t n;
    /* Its own group is in the foreground, though its parent leads. */
    pid_t pid = SYS(fork());
    if (pid) {
        signal(SIGTTOU, SIG_IGN);
        setpgid(pid, pid);
        SYS(tcsetpgrp(0, pid));
        int status;
        SYS(waitpid(pid, &status, 0));
        _exit(WEXITSTATUS(status));
    }
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);
    SYS(tcsetpgrp(0, getpid()));
    while ((n = read(0, line, sizeof(line))) > 0) {
        pty_name(0, name, sizeof(name));
        CHECK_EQ(tcgetpgrp(0), getpid(), "foreground group");
        CHECK_EQ(tcgetsid(0), getppid(), "session");
        dprintf(1, "%d %d %s %.*s", getpid(), getsid(0), name, (int)n, line);
    }
    _exit(4);
}

/* Passes lines on to a session of its own, and its answers back. */
__attribute__((noreturn)) static void middle(void)
{
    int master;
    char text[256], mine[64];
    ssize_t n;
    pid_t below = SYS(forkpty(&master, NULL, NULL, NULL));
    if (below == 0) {
        plain(0);
        leaf();
    }
    plain(master);
    while ((n = read(0, text, sizeof(text))) > 0) {
        SYS(write(master, text, (size_t)n));
        n = SYS(read(master, text, sizeof(text)));
        int session = -1;
        SYS(ioctl(master, TIOCGSID, &session));
        CHECK_EQ(session, below, "session of the inner pty");
        int len = snprintf(mine, sizeof(mine), "%d %d %s:", tcgetpgrp(0), tcgetsid(0),
                           ptsname(master));
        memmove(text + len, text, (size_t)n);
        memcpy(text, mine, (size_t)len);
        SYS(write(1, text, (size_t)(n + len)));
    }
    _exit(3);
}

static void ask(int master, const char *line, char *got, size_t size)
{
    size_t used = 0;
    pty_say(master, line);
    while (!used || got[used - 1] != '\n') {
        CHECK(used < size - 1, "too long an answer");
        used += (size_t)SYS(read(master, got + used, size - 1 - used));
    }
    got[used] = 0;
}

static pid_t begin_third(int *master)
{
    pid_t child = SYS(forkpty(master, NULL, NULL, NULL));
    if (child == 0) {
        pty_say(1, "up");
        pause();
        _exit(0);
    }
    pty_expect(*master, "up", 2, "word of the third session");
    return child;
}

static void end_third(int master, pid_t child)
{
    SYS(kill(child, SIGKILL));
    SYS(waitpid(child, NULL, 0));
    SYS(close(master));
}

int main(void)
{
    guest_begin();
    int master;
    char first[256], now[256];
    pid_t pid = SYS(forkpty(&master, NULL, NULL, NULL));
    if (pid == 0) {
        plain(0);
        middle();
    }
    plain(master);
    ask(master, "who\n", first, sizeof(first));
    int outer[2], inner[2];
    char names[2][64];
    CHECK(sscanf(first, "%d %d %63[^:]:%d %d %63s who", &outer[0], &outer[1], names[0], &inner[0],
                 &inner[1], names[1]) == 6,
          "answer: %s", first);
    CHECK(outer[0] == pid && outer[1] == pid, "the outer session: %s", first);
    CHECK(!strcmp(names[0], names[1]), "the inner pty has two names: %s", first);
    guest_ready();
    int third = -1, group = -1;
    pid_t child = 0;
    for (int turn = 0; guest_running(); turn++) {
        if (turn % 30 == 0)
            child = begin_third(&third);
        ask(master, "who\n", now, sizeof(now));
        CHECK(!strcmp(now, first), "it was %s, and is %s", first, now);
        SYS(ioctl(third, TIOCGPGRP, &group));
        CHECK_EQ(group, child, "the third session");
        if (turn % 30 == 29) {
            end_third(third, child);
            child = 0;
        }
    }
    int status;
    if (child)
        end_third(third, child);
    pty_say(master, "\x04");
    SYS(waitpid(pid, &status, 0));
    CHECK_EQ(status, 3 << 8, "status of the outer leader");
    guest_success();
}
