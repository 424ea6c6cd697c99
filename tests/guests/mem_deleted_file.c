/* Mappings of a deleted file, shared and private, one with the fd still open. */
#include "guest.h"

#define SIZE (16 * PAGE)

int main(void)
{
    guest_begin();
    char path[256];
    int fd = SYS(open(guest_path(path, sizeof(path), "gone"), O_RDWR | O_CREAT | O_TRUNC, 0600));
    SYS(ftruncate(fd, SIZE));
    char *shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(shared != MAP_FAILED && own != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(unlink(path));
    guest_fill(shared, SIZE, 1);
    guest_fill(own, PAGE, 2);
    guest_ready();
    uint64_t turn = 0;
    static char content[SIZE];
    do {
        guest_verify(shared, SIZE, 1 + turn, "the shared mapping");
        guest_verify(own, PAGE, 2, "the page copied on write");
        guest_verify(own + PAGE, SIZE - PAGE, 1 + turn + PAGE / 8, "the private mapping");
        CHECK_EQ(pread(fd, content, SIZE, 0), SIZE, "pread of the deleted file");
        guest_verify(content, SIZE, 1 + turn, "the deleted file");
        turn++;
        guest_fill(shared, SIZE, 1 + turn);
    } while (guest_running());
    CHECK(access(path, F_OK) == -1 && errno == ENOENT, "the deleted file is there again");
    struct stat st;
    SYS(fstat(fd, &st));
    CHECK_EQ(st.st_nlink, 0, "links of the deleted file");
    guest_success();
}
