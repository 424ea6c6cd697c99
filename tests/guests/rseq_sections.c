/* Restartable sequences: counters of each processor, added to by threads of which many are in the
 * middle of it when the job is frozen. One that goes on there instead of beginning anew
 * overwrites what others have counted. */
#include "guest.h"
#include <pthread.h>
#include <sys/rseq.h>

extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned __rseq_size __attribute__((weak));

enum { THREADS = 6, SPINS = 10000 };

static uint64_t counters[1024];
static uint64_t added[THREADS];
static volatile int ending;

#define TEXT(x) #x
#define NUMBER(x) TEXT(x)

/* Adds 1 to the counter of this processor, slowly; false when it has to be tried again. */
__attribute__((noinline)) static int add(volatile struct rseq *area)
{
    int done = 1;
    __asm__ volatile(".pushsection __rseq_cs, \"aw\"\n"
                     ".balign 32\n"
                     "3: .long 0, 0\n"
                     ".quad 1f, 2f - 1f, 4f\n"
                     ".popsection\n"
                     "leaq 3b(%%rip), %%rax\n"
                     "movq %%rax, 8(%[area])\n"
                     "1: movl 4(%[area]), %%eax\n"
                     "movq (%[counters],%%rax,8), %%rcx\n"
                     "movl %[spins], %%edx\n"
                     "5: decl %%edx\n"
                     "jnz 5b\n"
                     "incq %%rcx\n"
                     "movq %%rcx, (%[counters],%%rax,8)\n"
                     "2: jmp 6f\n"
                     ".byte 0x0f, 0xb9, 0x3d\n"
                     ".long " NUMBER(RSEQ_SIG) "\n"
                     "4: movl $0, %[done]\n"
                     "6:\n"
                     : [done] "+r"(done)
                     : [area] "r"(area), [counters] "r"(counters), [spins] "i"(SPINS)
                     : "rax", "rcx", "rdx", "cc", "memory");
    return done;
}

static void *thread(void *arg)
{
    volatile struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
    uint64_t *mine = arg;
    while (!ending)
        *mine += (uint64_t)add(area);
    return NULL;
}

int main(void)
{
    guest_begin();
    if (!&__rseq_size || __rseq_size == 0)
        skip("this C library does not register rseq");
    pthread_t ids[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&ids[i], NULL, thread, &added[i]), 0, "pthread_create");
    guest_ready();
    while (guest_running())
        ;
    ending = 1;
    uint64_t all = 0, counted = 0;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(ids[i], NULL);
        all += added[i];
    }
    for (size_t i = 0; i < COUNT(counters); i++)
        counted += counters[i];
    CHECK_EQ(counted, all, "sum of the processors' counters");
    guest_success();
}
