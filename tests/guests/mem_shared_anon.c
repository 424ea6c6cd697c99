/* Shared anonymous memory, mapped twice (mremap with old size 0): one object, two views. */
#include "guest.h"

#define SIZE (256 * PAGE)

int main(void)
{
    guest_begin();
    char *first = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(first != MAP_FAILED, "mmap: %s", strerror(errno));
    char *second = mremap(first, 0, SIZE, MREMAP_MAYMOVE);
    CHECK(second != MAP_FAILED && second != first, "mremap: %s", strerror(errno));
    char *tail = mremap(first + SIZE / 2, 0, SIZE / 2, MREMAP_MAYMOVE);
    CHECK(tail != MAP_FAILED, "mremap of the second half: %s", strerror(errno));
    guest_fill(first, SIZE, 0);
    guest_ready();
    uint64_t turn = 0;
    do {
        guest_verify(second, SIZE, turn, "the second view");
        guest_verify(tail, SIZE / 2, turn + SIZE / 2 / 8, "the view of the second half");
        turn++;
        guest_fill(first, SIZE, turn);
        guest_verify(second, PAGE, turn, "a write through the first view");
    } while (guest_running());
    guest_success();
}
