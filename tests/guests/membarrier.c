/* Registrations with membarrier(2) of each process: what is registered works, all else is EPERM. */
#include "each.h"

static const int REGISTER[] = {1 << 2, 1 << 4, 1 << 6, 1 << 8}, GET = 1 << 9;
/* The commands that need them; that of the first one needs none. */
static const int USE[] = {1 << 1, 1 << 3, 1 << 5, 1 << 7};

/* The last two show as the second one, too, which they do not register for. */
static int implied(int n, size_t i)
{
    return i == 1 && n >> 2;
}

static int call(int command)
{
    return (int)syscall(SYS_membarrier, command, 0, 0);
}

static void setup(int n)
{
    for (size_t i = 0; i < COUNT(REGISTER); i++)
        if (n >> i & 1)
            SYS(call(REGISTER[i]));
}

static void check(int n)
{
    int want = 0, now = call(GET);
    for (size_t i = 0; i < COUNT(REGISTER); i++) {
        int registered = n >> i & 1, done = call(USE[i]);
        want |= registered || implied(n, i) ? REGISTER[i] : 0;
        if (implied(n, i) && !registered)
            continue;
        /* Without GET_REGISTRATIONS (Linux 6.3) a job is registered for all that it could be. */
        CHECK(done == (registered || i == 0 ? 0 : -1) || (now < 0 && done == 0), "command %#x: %s", USE[i],
              done ? strerror(errno) : "works");
    }
    CHECK(now < 0 || now == want, "registrations %#x, should be %#x", now, want);
}

int main(void)
{
    guest_begin();
    if (call(0) < 0 || (call(0) & 0x1fe) != 0x1fe)
        skip("not all commands of membarrier(2)");
    each_hold(8, 0, setup, check);
    setup(15);
    while (guest_running())
        check(15);
    guest_success();
}
