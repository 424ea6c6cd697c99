/* The whole of /proc/self/maps: addresses, permissions, offsets, names. Device and inode of
 * files may change (the target's copy), so they are left out. */
#include "guest.h"

static char before[256 * 1024], after[256 * 1024], raw[256 * 1024];

static void maps(char *to, size_t size)
{
    guest_slurp("/proc/self/maps", raw, sizeof(raw));
    size_t used = 0;
    for (char *line = raw; *line;) {
        char *end = line + strcspn(line, "\n");
        if (*end)
            *end++ = 0;
        unsigned long low, high, offset;
        char perms[8], name[512] = "";
        CHECK(sscanf(line, "%lx-%lx %7s %lx %*s %*s %511[^\n]", &low, &high, perms, &offset, name) >= 4,
              "cannot read %s", line);
        /* An anonymous mapping has no offset that anyone could see otherwise. */
        used += (size_t)snprintf(to + used, size - used, "%lx-%lx %s %lx %s\n", low, high, perms,
                                 name[0] == '/' ? offset : 0, name);
        line = end;
    }
}

static void report(void)
{
    char *a = before, *b = after;
    while (*a && *b) {
        size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");
        if (n != m || memcmp(a, b, n))
            fail("/proc/self/maps: was %.*s, is %.*s", (int)n, a, (int)m, b);
        a += n + 1;
        b += m + 1;
    }
    fail("/proc/self/maps: lines too few or too many: %.*s", (int)strcspn(*a ? a : b, "\n"),
         *a ? a : b);
}

int main(void)
{
    guest_begin();
    for (int i = 0; i < 20; i++) {
        char *at = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
        SYS(mprotect(at + PAGE, PAGE, PROT_READ));
        SYS(mprotect(at + 3 * PAGE, PAGE, PROT_NONE));
        memset(at + 5 * PAGE, i, PAGE);
    }
    /* Before the layout is taken: the first printf allocates. */
    printf("READY\n");
    fflush(stdout);
    maps(before, sizeof(before));
    guest_ready_quietly();
    /* A file of /proc that is open keeps a job from moving, so it is read after the moves. */
    while (guest_running())
        ;
    maps(after, sizeof(after));
    if (strcmp(before, after))
        report();
    guest_success();
}
