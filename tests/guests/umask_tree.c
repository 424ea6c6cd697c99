/* umask(2) and working directory of each process of a tree. */
#include "each.h"

static const mode_t MASKS[] = {0, 022, 077, 0777};

static const char *directory(int n, char *to)
{
    char suffix[32];
    snprintf(suffix, sizeof(suffix), "directory%d", n);
    return guest_path(to, 256, suffix);
}

static void setup(int n)
{
    char path[256];
    SYS(mkdir(directory(n, path), 0755));
    SYS(chdir(path));
    umask(MASKS[n]);
}

static void check(int n)
{
    char text[16], path[256], now[256];
    guest_proc_status("Umask", text, sizeof(text));
    CHECK_EQ(strtoul(text, NULL, 8), MASKS[n], "umask");
    CHECK(getcwd(now, sizeof(now)), "getcwd: %s", strerror(errno));
    CHECK(!strcmp(now, directory(n, path)), "it is in %s", now);
}

/* Files that are made have what the mask leaves. */
static void check_use(void)
{
    char path[256];
    struct stat made;
    umask(0137);
    while (guest_running())
        ;
    int fd = SYS(open(guest_path(path, sizeof(path), "masked"), O_CREAT | O_RDWR | O_EXCL, 0777));
    SYS(fstat(fd, &made));
    CHECK_EQ(made.st_mode & 0777, 0640, "mode of a new file");
    SYS(close(fd));
    SYS(unlink(path));
}

int main(void)
{
    guest_begin();
    each_hold(COUNT(MASKS), 0, setup, check);
    for (int n = 0; n < (int)COUNT(MASKS); n++) {
        char path[256];
        SYS(rmdir(directory(n, path)));
    }
    check_use();
    guest_success();
}
