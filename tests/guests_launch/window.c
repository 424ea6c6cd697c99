/* Prints the terminal's size at each SIGWINCH, and "interrupted" at SIGINT, then ends. */
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void handler(int sig)
{
    char line[64];
    struct winsize w = {0};
    ioctl(0, TIOCGWINSZ, &w);
    int n = snprintf(line, sizeof line, sig == SIGINT ? "interrupted\n" : "size %dx%d\n", w.ws_col,
                     w.ws_row);
    write(1, line, n);
    if (sig == SIGINT)
        _exit(3);
}

int main(void)
{
    signal(SIGWINCH, handler);
    signal(SIGINT, handler);
    write(1, "ready\n", 6);
    for (;;)
        pause();
}
