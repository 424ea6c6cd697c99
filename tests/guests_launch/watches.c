/* Adds inotify watches by absolute and relative path, drops one, and keeps the rest. */
#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 2 || chdir(argv[1]))
        return 2;
    int fd = inotify_init();
    int absolute = inotify_add_watch(fd, argv[1], IN_CREATE);
    int gone = inotify_add_watch(fd, "/", IN_DELETE);
    int relative = inotify_add_watch(fd, "sub", IN_MODIFY | IN_ONLYDIR);
    int missing = inotify_add_watch(fd, "missing", IN_MODIFY);
    inotify_rm_watch(fd, gone);
    int copy = dup(fd);
    printf("%d %d %d %d %d\n", fd, copy, absolute, relative, missing);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) == 1) {
        printf("%d\n", inotify_add_watch(fd, "/tmp", IN_ATTRIB));
        fflush(stdout);
    }
    return 0;
}
