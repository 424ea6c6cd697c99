/* An i386 program without a C library. */
static int call(int nr, int a, const void *b, int c)
{
    int r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory");
    return r;
}

void _start(void)
{
    call(4, 1, "i386\n", 5);
    call(1, 5, 0, 0);
    for (;;)
        ;
}
