/* Advice on mappings: the VmFlags and permissions of each in /proc/self/smaps stay. */
#include "guest.h"

struct area {
    const char *name;
    int advice;
    char *at;
    char flags[128];
};

static struct area areas[] = {
    {"HUGEPAGE", MADV_HUGEPAGE, 0, ""},     {"NOHUGEPAGE", MADV_NOHUGEPAGE, 0, ""},
    {"DONTFORK", MADV_DONTFORK, 0, ""},     {"WIPEONFORK", MADV_WIPEONFORK, 0, ""},
    {"DONTDUMP", MADV_DONTDUMP, 0, ""},     {"MERGEABLE", MADV_MERGEABLE, 0, ""},
    {"SEQUENTIAL", MADV_SEQUENTIAL, 0, ""}, {"RANDOM", MADV_RANDOM, 0, ""},
};
#define SIZE (4UL << 20)

/* The flags that say how a mapping behaves; leaves out accounting and soft-dirty. */
static void keep_lasting(char *flags)
{
    static const char *const passing[] = {"sd", "ac", "ht", "mt", "um", "uw", "ui"};
    for (char *word = flags; strlen(word) >= 2; word += 3) {
        for (size_t i = 0; i < COUNT(passing); i++)
            if (!strncmp(word, passing[i], 2))
                memcpy(word, "--", 2);
        if (!word[2])
            break;
    }
}

static void vm_flags(void *at, char *to, size_t size)
{
    static char text[1 << 20];
    guest_slurp("/proc/self/smaps", text, sizeof(text));
    char *line = text;
    int inside = 0;
    while (*line) {
        unsigned long low, high;
        char *end = line + strcspn(line, "\n");
        char saved = *end;
        *end = 0;
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
            inside = low <= (unsigned long)at && (unsigned long)at < high;
        else if (inside && !strncmp(line, "VmFlags: ", 9)) {
            snprintf(to, size, "%s", line + 9);
            keep_lasting(to);
            return;
        }
        line = saved ? end + 1 : end;
    }
    fail("no mapping at %p", at);
}

static void check_areas(int learn)
{
    for (size_t i = 0; i < COUNT(areas); i++) {
        char now[128];
        vm_flags(areas[i].at, now, sizeof(now));
        if (learn)
            strcpy(areas[i].flags, now);
        CHECK(!strcmp(now, areas[i].flags), "%s: VmFlags were %s, are %s", areas[i].name,
              areas[i].flags, now);
        guest_verify(areas[i].at, 8 * PAGE, i * 100000, areas[i].name);
    }
}

int main(void)
{
    guest_begin();
    for (size_t i = 0; i < COUNT(areas); i++) {
        areas[i].at = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(areas[i].at != MAP_FAILED, "mmap: %s", strerror(errno));
        /* Some kernels are built without transparent huge pages or KSM. */
        if (madvise(areas[i].at, SIZE, areas[i].advice) == -1)
            CHECK(errno == EINVAL, "madvise %s: %s", areas[i].name, strerror(errno));
        guest_fill(areas[i].at, 8 * PAGE, i * 100000);
    }
    check_areas(1);
    guest_ready();
    /* A file of /proc that is open keeps a job from moving, so it is read after the moves. */
    while (guest_running())
        ;
    check_areas(0);
    guest_success();
}
