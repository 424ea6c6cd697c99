/* Reads a file of /proc again and again: it is open for a good part of the time. */
#include "guest.h"

int main(void)
{
    guest_begin();
    guest_ready();
    do {
        for (int turn = 0; turn < 50; turn++) {
            char text[4096];
            int fd = SYS(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
            CHECK(SYS(read(fd, text, sizeof(text))) > 0, "an empty status");
            SYS(close(fd));
        }
    } while (guest_running());
    guest_success();
}
