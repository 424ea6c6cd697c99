/* What guests share that read files of /proc again and again, and their own memory by one. */
#ifndef PROC_TEXT_H
#define PROC_TEXT_H
#include "guest.h"

static char text[1 << 16];

static inline size_t read_all(int fd)
{
    size_t used = 0;
    ssize_t n;
    while ((n = SYS(read(fd, text + used, sizeof(text) - 1 - used))) > 0)
        used += (size_t)n;
    text[used] = 0;
    return used;
}

static inline void check_holds(int fd, const char *wanted, const char *what)
{
    SYS(lseek(fd, 0, SEEK_SET));
    size_t used = read_all(fd);
    CHECK(memmem(text, used, wanted, strlen(wanted)), "%s: no `%s` in %zu bytes: %.200s", what,
          wanted, used, text);
}

/* Reads `value` by /proc/self/mem, and writes the next one. */
static inline void check_memory(int mem, volatile long *value)
{
    long got = 0;
    CHECK_EQ(SYS(pread(mem, &got, sizeof(got), (off_t)(uintptr_t)value)), 8, "own memory");
    CHECK_EQ(got, *value, "own memory");
    got++;
    CHECK_EQ(SYS(pwrite(mem, &got, sizeof(got), (off_t)(uintptr_t)value)), 8, "own memory");
    CHECK_EQ(*value, got, "own memory, written");
}
#endif
