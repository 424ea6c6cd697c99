/* The heap goes on growing with brk; arguments, environment and auxv are seen as before. */
#include "guest.h"
#include <sys/auxv.h>

static char cmdline[4096], env[65536], auxv[2048], text[65536];

static void same(const char *path, const char *before, size_t size)
{
    size_t n = guest_slurp(path, text, sizeof(text));
    CHECK(n == size && !memcmp(text, before, n), "%s changed (%zu bytes, were %zu)", path, n, size);
}

int main(int argc, char **argv)
{
    guest_begin();
    char *start = SYS((char *)sbrk(0));
    SYS((char *)sbrk(64 * PAGE));
    start = (char *)(((uintptr_t)start + PAGE - 1) & ~(PAGE - 1));
    guest_fill(start, 62 * PAGE, 9);
    size_t cmd_size = guest_slurp("/proc/self/cmdline", cmdline, sizeof(cmdline));
    size_t env_size = guest_slurp("/proc/self/environ", env, sizeof(env));
    size_t aux_size = guest_slurp("/proc/self/auxv", auxv, sizeof(auxv));
    char exe[512];
    exe[SYS(readlink("/proc/self/exe", exe, sizeof(exe) - 1))] = 0;
    CHECK(argc >= 1 && !strcmp(argv[0], cmdline), "argv[0] is not in /proc/self/cmdline");
    guest_ready();
    size_t grown = 0;
    do {
        guest_verify(start, 62 * PAGE, 9, "the heap");
        CHECK_EQ(getauxval(AT_PAGESZ), PAGE, "AT_PAGESZ");
        char now[512];
        now[SYS(readlink("/proc/self/exe", now, sizeof(now) - 1))] = 0;
        CHECK(!strcmp(exe, now), "/proc/self/exe was %s, is %s", exe, now);
        if (grown < 1000) {
            char *more = SYS((char *)sbrk(PAGE));
            CHECK(more == (char *)sbrk(0) - PAGE, "sbrk gave %p", (void *)more);
            memset(more, 1, PAGE);
            grown++;
        }
    } while (guest_running());
    /* Not before: a file of /proc that is open keeps a job from moving. */
    same("/proc/self/cmdline", cmdline, cmd_size);
    same("/proc/self/environ", env, env_size);
    same("/proc/self/auxv", auxv, aux_size);
    char *end = SYS((char *)sbrk(0));
    SYS((char *)sbrk(-(intptr_t)(grown * PAGE)));
    CHECK((char *)sbrk(0) == end - grown * PAGE, "the heap did not shrink");
    guest_success();
}
