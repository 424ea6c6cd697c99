/* A file mapped MAP_PRIVATE: pages of the file, pages copied on write, past the file's end. */
#include "guest.h"

#define PAGES 32

int main(void)
{
    guest_begin();
    char path[256];
    int fd = SYS(open(guest_path(path, sizeof(path), "data"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    static char content[PAGES * PAGE];
    guest_fill(content, sizeof(content), 5);
    CHECK_EQ(write(fd, content, sizeof(content) - 100), sizeof(content) - 100, "write");
    char *map = mmap(NULL, sizeof(content), PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *middle = mmap(NULL, 4 * PAGE, PROT_READ, MAP_PRIVATE, fd, 8 * PAGE);
    CHECK(map != MAP_FAILED && middle != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(close(fd));
    for (size_t i = 0; i < PAGES - 1; i += 2)
        guest_fill(map + i * PAGE, PAGE, 1000 + i);
    guest_ready();
    do {
        for (size_t i = 0; i < PAGES - 1; i++)
            if (i % 2 == 0)
                guest_verify(map + i * PAGE, PAGE, 1000 + i, "page copied on write");
            else
                guest_verify(map + i * PAGE, PAGE, 5 + i * PAGE / 8, "page of the file");
        guest_verify(middle, 4 * PAGE, 5 + 8 * PAGE / 8, "the mapping in the middle");
        for (size_t i = PAGES * PAGE - 100; i < PAGES * PAGE; i++)
            CHECK_EQ(map[i], 0, "byte after the end of the file");
    } while (guest_running());
    /* The file itself never saw the private writes. */
    fd = SYS(open(path, O_RDONLY));
    static char again[PAGES * PAGE];
    CHECK_EQ(read(fd, again, sizeof(again)), sizeof(content) - 100, "file size");
    CHECK(!memcmp(again, content, sizeof(content) - 100), "the file was written to");
    SYS(unlink(path));
    guest_success();
}
