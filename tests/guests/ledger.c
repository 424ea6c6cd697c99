/* For the tests of failing moves: one line per turn, `number`, appended to $GUEST_LEDGER. Two
 * copies that run at once would write a number twice; a lost state would go back. */
/* A move that fails because of a cut link takes its time; another host's clock is days ahead. */
#define MAX_CLOCK_JUMP_NS (300 * 1000000000ULL)
#include "guest.h"

int main(void)
{
    guest_begin();
    char line[32];
    int fd = SYS(open(guest_env("GUEST_LEDGER"), O_WRONLY | O_CREAT | O_APPEND, 0666));
    guest_ready();
    unsigned long long n = 0;
    do {
        int size = snprintf(line, sizeof(line), "%llu\n", n++);
        CHECK_EQ(write(fd, line, (size_t)size), size, "write to the ledger");
    } while (guest_running());
    guest_success();
}
