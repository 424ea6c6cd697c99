/* Private anonymous memory: content, holes, zero pages, protections, writes after a move. */
#include "guest.h"

#define PAGES 512

int main(void)
{
    guest_begin();
    char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED, "mmap: %s", strerror(errno));
    /* Every third page written, every third read only (zero page), every third untouched. */
    for (size_t i = 0; i < PAGES; i += 3)
        guest_fill(area + i * PAGE, PAGE, i);
    for (size_t i = 1; i < PAGES; i += 3)
        guest_verify_zero(area + i * PAGE, PAGE, "zero page");
    SYS(mprotect(area, 16 * PAGE, PROT_READ));
    SYS(munmap(area + 100 * PAGE, 4 * PAGE));
    guest_ready();
    uint64_t turn = 0;
    do {
        for (size_t i = 0; i < PAGES; i++) {
            if (i >= 100 && i < 104)
                continue;
            if (i % 3 == 0)
                guest_verify(area + i * PAGE, PAGE, i + (i >= 16 ? turn * 1000 : 0), "written page");
            else
                guest_verify_zero(area + i * PAGE, PAGE, "unwritten page");
        }
        turn++;
        for (size_t i = 18; i < PAGES; i += 3)
            if (i < 100 || i >= 104)
                guest_fill(area + i * PAGE, PAGE, i + turn * 1000);
        unsigned char present;
        CHECK(mincore(area + 100 * PAGE, PAGE, &present) == -1 && errno == ENOMEM, "the hole was filled");
    } while (guest_running());
    guest_success();
}
