/* Deleted files and O_TMPFILE: content, offset, mode, shared by a duplicate, linkable. */
#include "guest.h"

#define SIZE (64 * PAGE)

int main(void)
{
    guest_begin();
    char path[256], dir[256], content[PAGE];
    int fd = SYS(open(guest_path(path, sizeof(path), "deleted"), O_RDWR | O_CREAT | O_TRUNC, 0751));
    SYS(unlink(path));
    int twin = SYS(dup(fd));
    snprintf(dir, sizeof(dir), "%s", path);
    *strrchr(dir, '/') = 0;
    int temporary = open(dir, O_RDWR | O_TMPFILE, 0600);
    CHECK(temporary >= 0 || errno == EOPNOTSUPP, "O_TMPFILE: %s", strerror(errno));
    for (size_t at = 0; at < SIZE; at += PAGE) {
        guest_fill(content, PAGE, at);
        CHECK_EQ(pwrite(fd, content, PAGE, (off_t)at), PAGE, "pwrite");
        if (temporary >= 0)
            CHECK_EQ(pwrite(temporary, content, PAGE, (off_t)(at + SIZE)), PAGE, "pwrite");
    }
    guest_ready();
    off_t at = 0;
    do {
        struct stat st;
        SYS(fstat(fd, &st));
        CHECK_EQ(st.st_size, SIZE, "size of the deleted file");
        CHECK_EQ(st.st_nlink, 0, "links of the deleted file");
        CHECK_EQ(st.st_mode & 07777, 0751 & ~umask(umask(0)), "mode of the deleted file");
        CHECK_EQ(SYS(lseek(twin, 0, SEEK_CUR)), at, "offset of the duplicate");
        CHECK_EQ(read(fd, content, PAGE), PAGE, "read");
        guest_verify(content, PAGE, (uint64_t)at, "the deleted file");
        if (temporary >= 0) {
            CHECK_EQ(pread(temporary, content, PAGE, at + (off_t)SIZE), PAGE, "pread");
            guest_verify(content, PAGE, (uint64_t)at, "the temporary file");
            CHECK_EQ(pread(temporary, content, PAGE, at), PAGE, "pread of the hole");
            guest_verify_zero(content, PAGE, "the hole of the temporary file");
        }
        at = (at + (off_t)PAGE) % (off_t)SIZE;
        SYS(lseek(twin, at, SEEK_SET));
    } while (guest_running());
    CHECK(access(path, F_OK) == -1, "the deleted file is there again");
    guest_success();
}
