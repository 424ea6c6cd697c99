/* A directory that is being read: every name is seen once, in spite of moves. */
#include "guest.h"
#include <dirent.h>

#define FILES 400

int main(void)
{
    guest_begin();
    char dir[256], name[300];
    SYS(mkdir(guest_path(dir, sizeof(dir), "dir"), 0755));
    int fd = SYS(open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "f%d", i);
        SYS(close(SYS(openat(fd, name, O_WRONLY | O_CREAT, 0600))));
    }
    guest_ready();
    int more = 1;
    while (more) {
        static char seen[FILES];
        memset(seen, 0, sizeof(seen));
        SYS(lseek(fd, 0, SEEK_SET));
        int count = 0;
        for (;;) {
            char buffer[512]; /* small: many calls, with a turn after each */
            long n = SYS(syscall(SYS_getdents64, fd, buffer, sizeof(buffer)));
            if (n == 0)
                break;
            for (long at = 0; at < n;) {
                struct dirent64 *entry = (void *)(buffer + at);
                at += entry->d_reclen;
                if (entry->d_name[0] != 'f')
                    continue;
                int i = atoi(entry->d_name + 1);
                CHECK(i >= 0 && i < FILES && !seen[i], "%s seen twice", entry->d_name);
                seen[i] = 1;
                count++;
            }
            if (more)
                more = guest_running();
        }
        CHECK_EQ(count, FILES, "names in the directory");
    }
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "f%d", i);
        SYS(unlinkat(fd, name, 0));
    }
    SYS(rmdir(dir));
    guest_success();
}
