/* Locked memory: VmLck stays, MLOCK_ONFAULT does not populate. */
#include "guest.h"

#define SIZE (64 * PAGE)

static size_t resident(char *at)
{
    unsigned char pages[SIZE / PAGE];
    size_t count = 0;
    SYS(mincore(at, SIZE, pages));
    for (size_t i = 0; i < COUNT(pages); i++)
        count += pages[i] & 1;
    return count;
}

int main(void)
{
    guest_begin();
    char *now = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *later = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(now != MAP_FAILED && later != MAP_FAILED, "mmap: %s", strerror(errno));
    SYS(mlock(now, SIZE));
    SYS(mlock2(later, SIZE, MLOCK_ONFAULT));
    guest_fill(now, PAGE, 1);
    guest_fill(later, PAGE, 2);
    char locked[64];
    guest_proc_status("VmLck", locked, sizeof(locked));
    CHECK(strtoul(locked, NULL, 10) == 2 * SIZE / 1024, "VmLck is %s", locked);
    guest_ready();
    do {
        char text[64];
        guest_proc_status("VmLck", text, sizeof(text));
        CHECK(!strcmp(text, locked), "VmLck was %s, is %s", locked, text);
        CHECK_EQ(resident(now), SIZE / PAGE, "resident pages of the locked area");
        CHECK_EQ(resident(later), 1, "resident pages of the area locked on fault");
        guest_verify(now, PAGE, 1, "locked page");
        guest_verify(later, PAGE, 2, "page locked on fault");
    } while (guest_running());
    SYS(munlock(now, SIZE));
    SYS(munlock(later, SIZE));
    guest_success();
}
