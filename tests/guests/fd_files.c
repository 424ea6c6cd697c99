/* Regular files: offsets shared by duplicates and not by a second open, O_APPEND, O_SYNC,
 * close-on-exec, numbers with gaps, flags. */
#include "guest.h"

static char path[256];

static void check_flags(int fd, int status, int close_on_exec)
{
    int got = SYS(fcntl(fd, F_GETFL));
    CHECK((got & ~0100000) == status, "fd %d: flags %#o, were %#o", fd, got & ~0100000, status);
    CHECK_EQ(SYS(fcntl(fd, F_GETFD)), close_on_exec, "close-on-exec");
}

int main(void)
{
    guest_begin();
    guest_path(path, sizeof(path), "data");
    char content[8192];
    guest_fill(content, sizeof(content), 1);
    int fd = SYS(open(path, O_RDWR | O_CREAT | O_TRUNC, 0640));
    CHECK_EQ(write(fd, content, sizeof(content)), sizeof(content), "write");
    int twin = SYS(fcntl(fd, F_DUPFD_CLOEXEC, 77));
    int apart = SYS(open(path, O_RDONLY | O_CLOEXEC));
    int append = SYS(open(path, O_WRONLY | O_APPEND | O_DSYNC | O_NOATIME));
    int by_path = SYS(open(path, O_PATH));
    SYS(dup2(apart, 150));
    SYS(lseek(fd, 100, SEEK_SET));
    SYS(lseek(apart, 200, SEEK_SET));
    off_t size = sizeof(content);
    int flags = SYS(fcntl(append, F_GETFL)) & ~0100000;
    guest_ready();
    off_t at = 100, at_apart = 200;
    do {
        check_flags(fd, O_RDWR, 0);
        check_flags(twin, O_RDWR, FD_CLOEXEC);
        check_flags(apart, O_RDONLY, FD_CLOEXEC);
        check_flags(150, O_RDONLY, 0);
        check_flags(append, flags, 0);
        CHECK_EQ(SYS(lseek(fd, 0, SEEK_CUR)), at, "offset");
        CHECK_EQ(SYS(lseek(twin, 0, SEEK_CUR)), at, "offset of the duplicate");
        CHECK_EQ(SYS(lseek(150, 0, SEEK_CUR)), at_apart, "offset of the second open");
        char byte[16];
        CHECK_EQ(read(twin, byte, 16), 16, "read");
        CHECK(!memcmp(byte, content + at, 16), "content at %ld", (long)at);
        CHECK_EQ(read(apart, byte, 8), 8, "read");
        CHECK(!memcmp(byte, content + at_apart, 8), "content at %ld", (long)at_apart);
        at = (at + 16) % 8000;
        at_apart = (at_apart + 8) % 8000;
        SYS(lseek(fd, at, SEEK_SET));
        SYS(lseek(150, at_apart, SEEK_SET));
        CHECK_EQ(write(append, "x", 1), 1, "append");
        struct stat st;
        SYS(fstat(by_path, &st));
        CHECK_EQ(st.st_size, ++size, "size of the appended file");
        CHECK(fcntl(78, F_GETFD) == -1 && errno == EBADF, "fd 78 is open");
    } while (guest_running());
    SYS(unlink(path));
    guest_success();
}
