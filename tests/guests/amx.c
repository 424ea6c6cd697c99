/* AMX tile configuration and tile data across a move. */
#include "guest.h"
#include <cpuid.h>

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((packed));

int main(void)
{
    guest_begin();
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1U << 24)))
        skip("this processor has no AMX");
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
        skip("the kernel does not grant AMX");
    static struct tile_config config __attribute__((aligned(64))), config_now __attribute__((aligned(64)));
    config.palette = 1;
    config.bytes[0] = config.bytes[1] = 64;
    config.rows[0] = config.rows[1] = 16;
    static char in[1024] __attribute__((aligned(64))), out[1024] __attribute__((aligned(64)));
    guest_fill(in, sizeof(in), 3);
    /* tileloadd (%rax,%rbx,1), %tmm0, then spin, then tilestored %tmm0, (%rcx,%rbx,1). */
    guest_ready();
    do {
        __asm__ volatile("ldtilecfg %0" : : "m"(config));
        memset(out, 0, sizeof(out));
        unsigned long spins = 20000000;
        __asm__ volatile(".byte 0xc4,0xe2,0x7b,0x4b,0x04,0x18\n"
                         "1: dec %0\n jnz 1b\n"
                         ".byte 0xc4,0xe2,0x7a,0x4b,0x04,0x19\n"
                         : "+r"(spins)
                         : "a"(in), "b"(64L), "c"(out)
                         : "memory", "cc");
        CHECK(!memcmp(in, out, sizeof(in)), "tile 0 changed");
        __asm__ volatile("sttilecfg %0" : "=m"(config_now));
        CHECK(!memcmp(&config, &config_now, sizeof(config)), "the tile configuration changed");
        /* The permission stays although nothing is in use. */
        __asm__ volatile("tilerelease");
    } while (guest_running());
    guest_success();
}
