/* Copies stdin to stdout in odd pieces with a nap after each, to the end of the input; then
 * waits to be told to end. Nothing else goes to stdout. */
#include "guest.h"

int main(void)
{
    guest_begin();
    static char buffer[32768];
    guest_ready_quietly();
    int open_in = 1;
    for (size_t turn = 0; guest_running();) {
        if (!open_in)
            continue;
        ssize_t got = read(0, buffer, 1 + guest_mix(turn++) % sizeof(buffer));
        CHECK(got >= 0, "read of stdin: %s", strerror(errno));
        open_in = got > 0;
        for (ssize_t done = 0; done < got;) {
            ssize_t n = write(1, buffer + done, (size_t)(got - done));
            CHECK(n > 0, "write to stdout: %s", strerror(errno));
            done += n;
        }
    }
    /* All bytes are through, but their end may not have been read yet. */
    CHECK(!open_in || read(0, buffer, sizeof(buffer)) == 0, "told to end before the end of the input");
    guest_success_quietly();
}
