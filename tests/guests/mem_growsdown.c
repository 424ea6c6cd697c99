/* A MAP_GROWSDOWN mapping of the program's own still grows after a move. */
#include "guest.h"

int main(void)
{
    guest_begin();
    /* Room below, so that the area can grow by 64 pages (the kernel keeps a gap of 256). */
    char *room = mmap(NULL, 1024 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(munmap(room, 1024 * PAGE));
    char *area = mmap(room + 1000 * PAGE, 8 * PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(area != MAP_FAILED, "mmap of a growing area: %s", strerror(errno));
    guest_fill(area, 8 * PAGE, 7);
    guest_ready();
    do
        guest_verify(area, 8 * PAGE, 7, "the grows-down area");
    while (guest_running());
    for (size_t i = 1; i <= 64; i++)
        guest_fill(area - i * PAGE, PAGE, 100 + i);
    for (size_t i = 1; i <= 64; i++)
        guest_verify(area - i * PAGE, PAGE, 100 + i, "the grown part");
    guest_verify(area, 8 * PAGE, 7, "the grows-down area");
    guest_success();
}
