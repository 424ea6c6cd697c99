/* memfd mappings: shared twice and private with copied pages, the fd closed for one of two. */
#include "guest.h"

#define SIZE (64 * PAGE)

int main(void)
{
    guest_begin();
    int fd = SYS(memfd_create("kept", MFD_CLOEXEC));
    int gone = SYS(memfd_create("closed", 0));
    SYS(ftruncate(fd, SIZE));
    SYS(ftruncate(gone, SIZE));
    char *one = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *two = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
    char *own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    char *lost = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
    CHECK(one != MAP_FAILED && two != MAP_FAILED && own != MAP_FAILED && lost != MAP_FAILED,
          "mmap: %s", strerror(errno));
    SYS(close(gone));
    guest_fill(one, SIZE, 1);
    guest_fill(own, PAGE, 2);
    guest_fill(lost, SIZE, 3);
    guest_ready();
    uint64_t turn = 0;
    static char content[PAGE];
    do {
        guest_verify(one, SIZE, 1 + turn, "the first mapping");
        guest_verify(two, SIZE, 1 + turn, "the second mapping");
        guest_verify(own, PAGE, 2, "the copied page");
        guest_verify(own + PAGE, SIZE - PAGE, 1 + turn + PAGE / 8, "the pages not copied");
        guest_verify(lost, SIZE, 3 + turn, "the mapping with no fd");
        turn++;
        guest_fill(one, SIZE, 1 + turn);
        guest_fill(lost, SIZE, 3 + turn);
        CHECK_EQ(pread(fd, content, PAGE, 5 * PAGE), PAGE, "pread");
        guest_verify(content, PAGE, 1 + turn + 5 * PAGE / 8, "the memfd");
    } while (guest_running());
    guest_success();
}
