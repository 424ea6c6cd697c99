/* A process that has made itself non-dumpable stays so. */
#include "guest.h"
#include <sys/prctl.h>

int main(void)
{
    guest_begin();
    SYS(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    guest_ready();
    do
        CHECK_EQ(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 0, "PR_GET_DUMPABLE");
    while (guest_running());
    guest_success();
}
