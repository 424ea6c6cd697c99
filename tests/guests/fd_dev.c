/* The small devices: null, zero, full, random, urandom; flags and close-on-exec. */
#include "guest.h"

int main(void)
{
    guest_begin();
    int null = SYS(open("/dev/null", O_RDWR | O_CLOEXEC)), zero = SYS(open("/dev/zero", O_RDONLY));
    int full = SYS(open("/dev/full", O_WRONLY)), chance = SYS(open("/dev/urandom", O_RDONLY));
    int other = SYS(open("/dev/random", O_RDONLY | O_NONBLOCK));
    char *mapped = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0);
    CHECK(mapped != MAP_FAILED, "mmap of /dev/zero: %s", strerror(errno));
    guest_fill(mapped, PAGE, 1);
    guest_ready();
    do {
        char a[64] = {1}, b[64] = {0};
        CHECK_EQ(read(null, a, 1), 0, "read of /dev/null");
        CHECK_EQ(write(null, a, 64), 64, "write to /dev/null");
        CHECK_EQ(read(zero, a, 64), 64, "read of /dev/zero");
        CHECK(!memcmp(a, b, 64), "/dev/zero gives other bytes");
        CHECK(write(full, a, 1) == -1 && errno == ENOSPC, "/dev/full takes bytes");
        CHECK_EQ(read(chance, a, 64), 64, "read of /dev/urandom");
        CHECK_EQ(read(other, b, 64), 64, "read of /dev/random");
        CHECK(memcmp(a, b, 64), "the random bytes are equal");
        CHECK_EQ(SYS(fcntl(null, F_GETFD)), FD_CLOEXEC, "close-on-exec");
        CHECK_EQ(SYS(fcntl(other, F_GETFL)) & O_NONBLOCK, O_NONBLOCK, "flags of /dev/random");
        guest_verify(mapped, PAGE, 1, "the mapping of /dev/zero");
        guest_verify_zero(mapped + PAGE, 3 * PAGE, "the mapping of /dev/zero");
    } while (guest_running());
    guest_success();
}
