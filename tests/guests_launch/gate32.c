/* A 64-bit program that uses the i386 entry: getpid is 20 there, 39 here. inotify_add_watch
 * (254 here) is epoll_create there. */
#include <stdio.h>
#include <unistd.h>

static int call32(int nr, int a)
{
    int r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a) : "r8", "r9", "r10", "r11", "memory");
    return r;
}

int main(void)
{
    if (call32(20, 0) != getpid())
        return 1;
    int fd = call32(254, 1);
    if (fd < 0)
        return 2;
    puts("EXIT-SUCCESS");
    return 0;
}
