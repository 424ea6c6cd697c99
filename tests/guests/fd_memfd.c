/* memfd: content, size, seals, name, offset, a sealed one that is read only. */
#include "guest.h"

int main(void)
{
    guest_begin();
    int open_one = SYS(memfd_create("the name", MFD_ALLOW_SEALING | MFD_CLOEXEC));
    int sealed = SYS(memfd_create("sealed", MFD_ALLOW_SEALING));
    static char content[32 * PAGE], now[32 * PAGE];
    guest_fill(content, sizeof(content), 4);
    CHECK_EQ(write(open_one, content, sizeof(content)), sizeof(content), "write");
    CHECK_EQ(write(sealed, content, sizeof(content)), sizeof(content), "write");
    SYS(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
    SYS(lseek(open_one, 1234, SEEK_SET));
    char link[128], path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", open_one);
    guest_ready();
    do {
        link[SYS(readlink(path, link, sizeof(link) - 1))] = 0;
        CHECK(!strcmp(link, "/memfd:the name (deleted)"), "the memfd is called %s", link);
        CHECK_EQ(SYS(lseek(open_one, 0, SEEK_CUR)), 1234, "offset");
        CHECK_EQ(pread(open_one, now, sizeof(now), 0), sizeof(now), "pread");
        CHECK(!memcmp(now, content, sizeof(now)), "the content changed");
        CHECK_EQ(pread(sealed, now, sizeof(now), 0), sizeof(now), "pread");
        CHECK(!memcmp(now, content, sizeof(now)), "the sealed content changed");
        CHECK_EQ(SYS(fcntl(open_one, F_GET_SEALS)), 0, "seals of the open one");
        CHECK_EQ(SYS(fcntl(sealed, F_GET_SEALS)), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, "seals");
        CHECK(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM, "the sealed memfd is written");
        CHECK(ftruncate(sealed, 0) == -1 && errno == EPERM, "the sealed memfd shrinks");
    } while (guest_running());
    guest_success();
}
