/* The FS and GS bases of two threads. */
#include "guest.h"
#include <asm/prctl.h>
#include <pthread.h>

static volatile int ending;

static void check_bases(unsigned long *area, unsigned long fs)
{
    unsigned long base, value;
    SYS(syscall(SYS_arch_prctl, ARCH_GET_GS, &base));
    CHECK_EQ(base, area, "the GS base");
    __asm__ volatile("mov %%gs:8, %0" : "=r"(value));
    CHECK_EQ(value, area[1], "what GS points to");
    SYS(syscall(SYS_arch_prctl, ARCH_GET_FS, &base));
    CHECK_EQ(base, fs, "the FS base");
    __asm__ volatile("mov %%fs:0, %0" : "=r"(value));
    CHECK_EQ(value, fs, "what FS points to");
}

static void set_bases(unsigned long *area, unsigned long *fs, unsigned long mark)
{
    area[1] = mark;
    SYS(syscall(SYS_arch_prctl, ARCH_SET_GS, area));
    SYS(syscall(SYS_arch_prctl, ARCH_GET_FS, fs));
}

static void *thread(void *unused)
{
    unsigned long area[8], fs;
    set_bases(area, &fs, 0x2222222222222222);
    while (!ending) {
        check_bases(area, fs);
        usleep(500);
    }
    return unused;
}

int main(void)
{
    guest_begin();
    unsigned long area[8], fs;
    set_bases(area, &fs, 0x1111111111111111);
    pthread_t id;
    CHECK_EQ(pthread_create(&id, NULL, thread, NULL), 0, "pthread_create");
    guest_ready();
    do
        check_bases(area, fs);
    while (guest_running());
    ending = 1;
    pthread_join(id, NULL);
    guest_success();
}
