/* mlockall(2) of what is yet to be mapped: at once, or page by page as it is touched. */
#include "each.h"

#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
enum { PAGES = 8, COLD = 20 };

static void setup(int n)
{
    if (n)
        SYS(mlockall(n == 1 ? MCL_FUTURE : MCL_FUTURE | MCL_ONFAULT));
}

static void check(int n)
{
    unsigned char there[PAGES];
    char *at = SYS(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    CHECK_EQ(madvise(at, PAGE, COLD), n ? -1 : 0, "advice on memory that is locked or not");
    SYS(mincore(at, PAGES * PAGE, there));
    CHECK_EQ(there[PAGES - 1] & 1, n == 1, "a page that nobody has touched");
    SYS(munmap(at, PAGES * PAGE));
}

int main(void)
{
    guest_begin();
    each_hold(3, 0, setup, check);
    guest_success();
}
