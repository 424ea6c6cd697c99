/* 32 threads, each with its own thread-local data, name, rounding mode, x87 stack, vector
 * and mask registers. The registers hold their values across a spin loop in assembler, so
 * that a move finds them there. */
#include "guest.h"
#include <cpuid.h>
#include <pthread.h>
#include <sys/prctl.h>

#define THREADS 32
#define SPINS 40000UL

static __thread uint64_t local[512] = {42};
static volatile int ending;
static pthread_barrier_t ready;
static int have_avx, have_avx512;

/* x87: 8 numbers on the stack while spinning. */
static void spin_x87(uint64_t seed)
{
    long in[8], out[8];
    for (int i = 0; i < 8; i++)
        in[i] = (long)(seed * 100 + (uint64_t)i);
    unsigned long spins = SPINS;
    __asm__ volatile("fildq 0(%1)\n fildq 8(%1)\n fildq 16(%1)\n fildq 24(%1)\n"
                     "fildq 32(%1)\n fildq 40(%1)\n fildq 48(%1)\n fildq 56(%1)\n"
                     "1: dec %0\n jnz 1b\n"
                     "fistpq 56(%2)\n fistpq 48(%2)\n fistpq 40(%2)\n fistpq 32(%2)\n"
                     "fistpq 24(%2)\n fistpq 16(%2)\n fistpq 8(%2)\n fistpq 0(%2)\n"
                     : "+r"(spins)
                     : "r"(in), "r"(out)
                     : "memory", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",
                       "st(7)");
    CHECK(!memcmp(in, out, sizeof(in)), "x87 registers: wanted %ld, got %ld", in[7], out[7]);
}

/* All 16 general registers but rsp and rbp hold values while spinning. */
static void spin_general(uint64_t seed)
{
    uint64_t in[12], out[12];
    guest_fill(in, sizeof(in), seed);
    struct {
        uint64_t *in, *out;
    } at = {in, out};
    __asm__ volatile("mov 8(%0), %%rcx\n push %%rcx\n mov (%0), %%rax\n"
                     "mov 0(%%rax), %%rbx\n mov 8(%%rax), %%rdx\n mov 16(%%rax), %%rsi\n"
                     "mov 24(%%rax), %%rdi\n mov 32(%%rax), %%r8\n mov 40(%%rax), %%r9\n"
                     "mov 48(%%rax), %%r10\n mov 56(%%rax), %%r11\n mov 64(%%rax), %%r12\n"
                     "mov 72(%%rax), %%r13\n mov 80(%%rax), %%r14\n mov 88(%%rax), %%r15\n"
                     "mov $40000, %%rcx\n 1: dec %%rcx\n jnz 1b\n pop %%rax\n"
                     "mov %%rbx, 0(%%rax)\n mov %%rdx, 8(%%rax)\n mov %%rsi, 16(%%rax)\n"
                     "mov %%rdi, 24(%%rax)\n mov %%r8, 32(%%rax)\n mov %%r9, 40(%%rax)\n"
                     "mov %%r10, 48(%%rax)\n mov %%r11, 56(%%rax)\n mov %%r12, 64(%%rax)\n"
                     "mov %%r13, 72(%%rax)\n mov %%r14, 80(%%rax)\n mov %%r15, 88(%%rax)\n"
                     :
                     : "a"(&at)
                     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
                       "r14", "r15", "memory", "cc");
    CHECK(!memcmp(in, out, sizeof(in)), "general registers: wanted %#lx, got %#lx", in[0], out[0]);
}

#define EACH16(X)                                                                                 \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define EACH32(X)                                                                                 \
    EACH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28)       \
    X(29) X(30) X(31)
#define STR(n) #n

#define LOAD_X(n) "movdqu " STR(n) "*16(%1), %%xmm" STR(n) "\n"
#define SAVE_X(n) "movdqu %%xmm" STR(n) ", " STR(n) "*16(%2)\n"
#define LOAD_Y(n) "vmovdqu " STR(n) "*32(%1), %%ymm" STR(n) "\n"
#define SAVE_Y(n) "vmovdqu %%ymm" STR(n) ", " STR(n) "*32(%2)\n"
#define LOAD_Z(n) "vmovdqu64 " STR(n) "*64(%1), %%zmm" STR(n) "\n"
#define SAVE_Z(n) "vmovdqu64 %%zmm" STR(n) ", " STR(n) "*64(%2)\n"
#define LOAD_K(n) "kmovw " STR(n) "*2(%3), %%k" STR(n) "\n"
#define SAVE_K(n) "kmovw %%k" STR(n) ", " STR(n) "*2(%4)\n"
#define EACH8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define SPIN "1: dec %0\n jnz 1b\n"

static void spin_sse(uint64_t seed)
{
    uint64_t in[32], out[32], spins = SPINS;
    guest_fill(in, sizeof(in), seed);
    __asm__ volatile(EACH16(LOAD_X) SPIN EACH16(SAVE_X) : "+r"(spins) : "r"(in), "r"(out)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
                       "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    CHECK(!memcmp(in, out, sizeof(in)), "xmm registers: wanted %#lx, got %#lx", in[0], out[0]);
}

static void spin_avx(uint64_t seed)
{
    uint64_t in[64], out[64], spins = SPINS;
    guest_fill(in, sizeof(in), seed);
    __asm__ volatile(EACH16(LOAD_Y) SPIN EACH16(SAVE_Y) "vzeroupper\n"
                     : "+r"(spins) : "r"(in), "r"(out)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
                       "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    CHECK(!memcmp(in, out, sizeof(in)), "ymm registers: wanted %#lx, got %#lx", in[2], out[2]);
}

__attribute__((target("avx512f"))) static void spin_avx512(uint64_t seed)
{
    uint64_t in[256], out[256], spins = SPINS;
    uint16_t masks[8], masks_out[8];
    guest_fill(in, sizeof(in), seed);
    memcpy(masks, in, sizeof(masks));
    __asm__ volatile(EACH32(LOAD_Z) EACH8(LOAD_K) SPIN EACH32(SAVE_Z) EACH8(SAVE_K) "vzeroupper\n"
                     : "+r"(spins) : "r"(in), "r"(out), "r"(masks), "r"(masks_out)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
                       "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
                       "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
                       "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k1",
                       "k2", "k3", "k4", "k5", "k6", "k7");
    CHECK(!memcmp(in, out, sizeof(in)), "zmm registers: wanted %#lx, got %#lx", in[4], out[4]);
    CHECK(!memcmp(masks, masks_out, sizeof(masks)), "k registers: wanted %#x, got %#x", masks[1],
          masks_out[1]);
}

static void check_own(uint64_t number, pid_t tid, uint32_t mxcsr, uint16_t control)
{
    char name[16], want[16];
    snprintf(want, sizeof(want), "thread-%llu", (unsigned long long)number);
    SYS(prctl(PR_GET_NAME, name));
    CHECK(!strcmp(name, want), "thread name is %s, was %s", name, want);
    CHECK_EQ(syscall(SYS_gettid), tid, "gettid");
    guest_verify(local, sizeof(local), number, "thread-local data");
    uint32_t mxcsr_now;
    uint16_t control_now;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr_now));
    __asm__ volatile("fnstcw %0" : "=m"(control_now));
    CHECK_EQ(mxcsr_now & ~0x3fU, mxcsr & ~0x3fU, "MXCSR");
    CHECK_EQ(control_now, control, "x87 control word");
}

static void *thread(void *arg)
{
    uint64_t number = (uintptr_t)arg;
    char name[16];
    snprintf(name, sizeof(name), "thread-%llu", (unsigned long long)number);
    SYS(prctl(PR_SET_NAME, name));
    pid_t tid = (pid_t)syscall(SYS_gettid);
    guest_fill(local, sizeof(local), number);
    /* Rounding mode by thread; all exceptions stay masked. */
    uint32_t mxcsr = 0x1f80U | (uint32_t)(number % 4) << 13;
    uint16_t control = (uint16_t)(0x037fU | (number % 4) << 10);
    __asm__ volatile("ldmxcsr %0" : : "m"(mxcsr));
    __asm__ volatile("fldcw %0" : : "m"(control));
    pthread_barrier_wait(&ready);
    for (uint64_t turn = 0; !ending; turn++) {
        uint64_t seed = number * 1000003 + turn;
        spin_general(seed);
        spin_x87(seed % 1000000);
        spin_sse(seed);
        if (have_avx)
            spin_avx(seed);
        if (have_avx512)
            spin_avx512(seed);
        check_own(number, tid, mxcsr, control);
    }
    return NULL;
}

int main(void)
{
    guest_begin();
    have_avx = __builtin_cpu_supports("avx") != 0;
    have_avx512 = __builtin_cpu_supports("avx512f") != 0;
    pthread_barrier_init(&ready, NULL, THREADS + 1);
    pthread_t ids[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, thread, (void *)i), 0, "pthread_create");
    pthread_barrier_wait(&ready);
    guest_ready();
    while (guest_running())
        ;
    ending = 1;
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_join(ids[i], NULL), 0, "pthread_join");
    guest_success();
}
