/* PROT_NONE pages keep their content; so do write-only, exec-only and read-only ones. */
#include "guest.h"

static const int prots[] = {PROT_NONE, PROT_WRITE, PROT_EXEC, PROT_READ, PROT_READ | PROT_EXEC};
#define SIZE (16 * PAGE)

int main(void)
{
    guest_begin();
    char *areas[COUNT(prots)];
    for (size_t i = 0; i < COUNT(prots); i++) {
        areas[i] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(areas[i] != MAP_FAILED, "mmap: %s", strerror(errno));
        guest_fill(areas[i], SIZE, i);
        SYS(mprotect(areas[i], SIZE, prots[i]));
    }
    /* An address-space reservation that was never touched. */
    char *reserve = mmap(NULL, 1UL << 36, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(reserve != MAP_FAILED, "reserve: %s", strerror(errno));
    int null = SYS(open("/dev/null", O_WRONLY));
    int zero[2];
    SYS(pipe(zero));
    guest_ready();
    do {
        /* The kernel says EFAULT for what may not be read; no signal needed. */
        CHECK(write(zero[1], areas[0], 1) == -1 && errno == EFAULT, "PROT_NONE can be read");
        CHECK(write(zero[1], reserve, 1) == -1 && errno == EFAULT, "the reservation can be read");
        int fd = SYS(open("/dev/zero", O_RDONLY));
        CHECK(read(fd, areas[3], 1) == -1 && errno == EFAULT, "PROT_READ can be written");
        SYS(close(fd));
    } while (guest_running());
    SYS(close(null));
    for (size_t i = 0; i < COUNT(prots); i++) {
        SYS(mprotect(areas[i], SIZE, PROT_READ | PROT_WRITE));
        guest_verify(areas[i], SIZE, i, "content behind the protection");
    }
    SYS(mprotect(reserve + (1UL << 35), PAGE, PROT_READ | PROT_WRITE));
    guest_fill(reserve + (1UL << 35), PAGE, 1);
    guest_success();
}
