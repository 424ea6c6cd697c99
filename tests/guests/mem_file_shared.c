/* A file mapped MAP_SHARED: writes through the mapping are read from the file and back. */
#include "guest.h"

#define SIZE (16 * PAGE)

int main(void)
{
    guest_begin();
    char path[256];
    int fd = SYS(open(guest_path(path, sizeof(path), "data"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    SYS(ftruncate(fd, SIZE));
    char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED, "mmap: %s", strerror(errno));
    guest_fill(map, SIZE, 0);
    guest_ready();
    static char content[SIZE];
    uint64_t turn = 0;
    do {
        guest_verify(map, SIZE, turn, "the mapping");
        CHECK_EQ(pread(fd, content, SIZE, 0), SIZE, "pread");
        guest_verify(content, SIZE, turn, "the file");
        turn++;
        guest_fill(map, SIZE / 2, turn);
        guest_fill(content + SIZE / 2, SIZE / 2, turn + SIZE / 2 / 8);
        CHECK_EQ(pwrite(fd, content + SIZE / 2, SIZE / 2, SIZE / 2), SIZE / 2, "pwrite");
    } while (guest_running());
    SYS(unlink(path));
    guest_success();
}
