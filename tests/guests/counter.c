/* Prints one number per line on stdout; echoes each line of stdin as `in: …`. Plain C: it is
 * also built static, without PIE and with musl. */
#include "guest.h"
#include <poll.h>

int main(void)
{
    guest_begin();
    char input[4096];
    struct pollfd in = {.fd = 0, .events = POLLIN};
    guest_ready();
    unsigned long long n = 0;
    do {
        char line[4200];
        int size = snprintf(line, sizeof(line), "%llu\n", n++);
        CHECK_EQ(write(1, line, (size_t)size), size, "write to stdout");
        int ready = poll(&in, in.fd >= 0, 0);
        CHECK(ready >= 0, "poll: %s", strerror(errno));
        if (ready && in.revents) {
            ssize_t got = read(0, input, sizeof(input));
            CHECK(got >= 0, "read of stdin: %s", strerror(errno));
            if (got == 0)
                in.fd = -1;
            else {
                size = snprintf(line, sizeof(line), "in: %.*s", (int)got, input);
                CHECK_EQ(write(1, line, (size_t)size), size, "write to stdout");
            }
        }
    } while (guest_running());
    guest_success();
}
