/* Faults that a handler repairs, as garbage collectors and emulators have them: address, code, and
 * the kind of access that the processor reports are those of the access, whenever a move comes. */
#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { THREADS = 3, WRITES = 2 };

static __thread volatile char *page;
static __thread volatile int wanted_write, seen, divided;

static void on_segv(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    CHECK_EQ(sig, SIGSEGV, "signal");
    CHECK_EQ(info->si_code, SEGV_ACCERR, "si_code");
    CHECK(info->si_addr == (void *)(page + 16), "si_addr %p of page %p", info->si_addr, page);
    CHECK_EQ((uintptr_t)uc->uc_mcontext.gregs[REG_CR2], (uintptr_t)page + 16, "cr2");
    CHECK_EQ(uc->uc_mcontext.gregs[REG_TRAPNO], 14, "trap number");
    CHECK_EQ(uc->uc_mcontext.gregs[REG_ERR] & WRITES, wanted_write ? WRITES : 0, "kind of access");
    seen++;
    SYS(mprotect((void *)page, PAGE, wanted_write ? PROT_READ | PROT_WRITE : PROT_READ));
}

static void on_fpe(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    CHECK_EQ(sig, SIGFPE, "signal");
    CHECK_EQ(info->si_code, FPE_INTDIV, "si_code");
    CHECK_EQ(uc->uc_mcontext.gregs[REG_TRAPNO], 0, "trap number");
    uc->uc_mcontext.gregs[REG_RCX] = 7;
    divided++;
}

static void one_turn(unsigned turn)
{
    int before = seen;
    wanted_write = 0;
    SYS(mprotect((void *)page, PAGE, PROT_NONE));
    char got = page[16];
    CHECK_EQ(got, (char)turn, "what was read");
    wanted_write = 1;
    page[16] = (char)(turn + 1);
    CHECK_EQ(seen, before + 2, "faults");
    int times = divided;
    unsigned quotient, rest;
    __asm__ volatile("div %%ecx" : "=a"(quotient), "=d"(rest) : "a"(22), "d"(0), "c"(0));
    CHECK_EQ(quotient, 3, "22 / 7");
    CHECK_EQ(divided, times + 1, "divisions");
}

static void *fault(void *unused)
{
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED, "mmap");
    for (unsigned turn = 0; !guest_stopping(); turn++)
        for (int i = 0; i < 100; i++, turn++) {
            page[16] = (char)turn;
            one_turn(turn);
            SYS(mprotect((void *)page, PAGE, PROT_READ | PROT_WRITE));
        }
    return unused;
}

int main(void)
{
    guest_begin();
    struct sigaction segv = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    struct sigaction fpe = {.sa_sigaction = on_fpe, .sa_flags = SA_SIGINFO};
    SYS(sigaction(SIGSEGV, &segv, NULL));
    SYS(sigaction(SIGFPE, &fpe, NULL));
    pthread_t ids[THREADS];
    for (int n = 0; n < THREADS; n++)
        CHECK_EQ(pthread_create(&ids[n], NULL, fault, NULL), 0, "pthread_create");
    guest_ready();
    while (guest_running())
        ;
    for (int n = 0; n < THREADS; n++)
        pthread_join(ids[n], NULL);
    guest_success();
}
