/* Paths that lead somewhere else than they say at first: upwards, by a descriptor, by the working
 * directory, into a directory that is gone. What bind(2) was given is shown, files are where they
 * were, and nothing is left beside them. */
#include "unix.h"
#include <dirent.h>

enum { WAYS = 5, VIA = 200 };

static char home[64];

/* Names in a directory. */
static int names(const char *path, const char *wanted)
{
    int all = 0;
    DIR *dir = opendir(path);
    CHECK(dir, "opendir %s: %s", path, strerror(errno));
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            all += !wanted || !strcmp(entry->d_name, wanted);
    closedir(dir);
    return all;
}

int main(void)
{
    guest_begin();
    char texts[WAYS][108], files[WAYS][108], sub[100], lost[100];
    snprintf(home, sizeof(home), "/tmp/guest-%d-%llx", getpid(),
             (unsigned long long)clock_ns(CLOCK_REALTIME));
    snprintf(sub, sizeof(sub), "%s/sub", home);
    snprintf(lost, sizeof(lost), "%s/lost", home);
    SYS(mkdir(home, 0700));
    SYS(mkdir(sub, 0700));
    SYS(mkdir(lost, 0700));
    SYS(chdir(sub));
    SYS(dup3(SYS(open(home, O_PATH | O_DIRECTORY)), VIA, O_CLOEXEC));
    strcpy(texts[0], "../up");
    snprintf(files[0], sizeof(files[0]), "%s/up", home);
    snprintf(texts[1], sizeof(texts[1]), "/proc/self/fd/%d/via", VIA);
    snprintf(files[1], sizeof(files[1]), "%s/via", home);
    strcpy(texts[2], "/proc/self/cwd/here");
    snprintf(files[2], sizeof(files[2]), "%s/here", sub);
    snprintf(texts[3], sizeof(texts[3]), "%s/sub/../bent", home);
    snprintf(files[3], sizeof(files[3]), "%s/bent", home);
    snprintf(texts[4], sizeof(texts[4]), "%s/straight", home);
    strcpy(files[4], texts[4]);
    int doors[WAYS], hosts[WAYS], guests[WAYS];
    for (int i = 0; i < WAYS; i++) {
        doors[i] = bound(SOCK_STREAM, texts[i]);
        SYS(listen(doors[i], 4));
        guests[i] = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
        SYS(connect_to(guests[i], texts[i]));
        hosts[i] = SYS(accept(doors[i], NULL, NULL));
    }
    /* An accepted socket of a listening one that is closed, in a directory that is removed. */
    char gone[108];
    snprintf(gone, sizeof(gone), "%s/gone", lost);
    int door = bound(SOCK_STREAM, gone), guest = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
    SYS(listen(door, 1));
    SYS(connect_to(guest, gone));
    int host = SYS(accept(door, NULL, NULL));
    SYS(close(door));
    SYS(unlink(gone));
    SYS(rmdir(lost));
    guest_ready();
    do {
        for (int i = 0; i < WAYS; i++) {
            want_name(getsockname, doors[i], texts[i], "name of a listening socket");
            want_name(getsockname, hosts[i], texts[i], "name of an accepted socket");
            want_name(getpeername, guests[i], texts[i], "name of the other end");
            put(guests[i], "to the host");
            want(hosts[i], "to the host", "what came from the guest");
            int visitor = SYS(socket(AF_UNIX, SOCK_STREAM, 0));
            CHECK(connect_to(visitor, files[i]) == 0, "connect to %s: %s", files[i],
                  strerror(errno));
            SYS(close(SYS(accept(doors[i], NULL, NULL))));
            SYS(close(visitor));
        }
        want_name(getpeername, guest, gone, "name in a directory that is gone");
        put(host, "still");
        want(guest, "still", "what came from a host without a door");
        CHECK_EQ(names(home, NULL), 5, "files in the directory");
        CHECK_EQ(names(sub, NULL), 1, "files in the lower directory");
    } while (guest_running());
    for (int i = 0; i < WAYS; i++)
        SYS(unlink(files[i]));
    SYS(rmdir(sub));
    SYS(rmdir(home));
    guest_success();
}
