/*
 * What every guest program shares: the protocol with the harness.
 *
 *   GUEST_STATUS  file that the guest keeps one line in: a counter of 20 digits, then a
 *                 word: `running`, `done` or `FAIL`. The counter grows with every check.
 *   GUEST_STOP    path that appears when the harness wants the guest to end.
 *   GUEST_PAUSES  file with the sum of all pauses so far, in milliseconds, or absent.
 *
 * A guest sets its state up, calls guest_ready(), and then checks (and uses) its state
 * `while (guest_running())`. guest_success() ends it: `EXIT-SUCCESS` on stdout, status 0.
 * A violation prints `FAIL: …` on stderr and ends with status 1; a guest that cannot be
 * run here prints `SKIP …` and ends with 77.
 */
#ifndef GUEST_H
#define GUEST_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define NS_PER_S 1000000000ULL
/* The clock may not go forward by more than this between two checks. */
#ifndef MAX_CLOCK_JUMP_NS
#define MAX_CLOCK_JUMP_NS (15 * NS_PER_S)
#endif

static int guest_status_fd = -1;
static const char *guest_stop_path;
static uint64_t guest_counter;
static uint64_t guest_clock_ns;

/* Bytes of the first line of the status file. */
enum { GUEST_STATUS_LINE = 30 };

static inline void guest_status(const char *word)
{
    char line[GUEST_STATUS_LINE + 1];
    int n = snprintf(line, sizeof(line), "%020llu %-8s\n", (unsigned long long)guest_counter, word);
    if (guest_status_fd >= 0 && pwrite(guest_status_fd, line, (size_t)n, 0) != n)
        _exit(3);
}

__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...)
{
    char text[512] = "FAIL: ";
    va_list args;
    va_start(args, format);
    int n = 6 + vsnprintf(text + 6, sizeof(text) - 8, format, args);
    va_end(args);
    if (n > (int)sizeof(text) - 2)
        n = (int)sizeof(text) - 2;
    text[n++] = '\n';
    guest_status("FAIL");
    /* Where stderr has no reader any more the second line of the file says why. */
    if (guest_status_fd >= 0 && pwrite(guest_status_fd, text, (size_t)n, GUEST_STATUS_LINE) != n)
        _exit(3);
    if (write(2, text, (size_t)n) < 0)
        _exit(2);
    _exit(1);
}

/* Fails unless COND, saying what was expected and got. */
#define CHECK(cond, ...)                                                                          \
    do {                                                                                          \
        if (!(cond))                                                                              \
            fail(__VA_ARGS__);                                                                    \
    } while (0)

/* The value of a call that must not fail. */
#define SYS(call)                                                                                 \
    ({                                                                                            \
        __typeof__(call) sys_value = (call);                                                      \
        if (sys_value == (__typeof__(call)) - 1)                                                  \
            fail("%s:%d %s: %s", __FILE__, __LINE__, #call, strerror(errno));                     \
        sys_value;                                                                                \
    })

#define CHECK_EQ(got, want, what)                                                                 \
    do {                                                                                          \
        long long eq_got = (long long)(got), eq_want = (long long)(want);                         \
        if (eq_got != eq_want)                                                                    \
            fail("%s: expected %lld (%#llx), got %lld (%#llx)", what, eq_want,                    \
                 (unsigned long long)eq_want, eq_got, (unsigned long long)eq_got);                \
    } while (0)

__attribute__((noreturn)) static inline void skip(const char *why)
{
    printf("SKIP %s\n", why);
    fflush(stdout);
    exit(77);
}

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    SYS(clock_gettime(clock, &now));
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static inline const char *guest_env(const char *name)
{
    const char *value = getenv(name);
    CHECK(value, "%s is not set", name);
    return value;
}

/* A path next to the status file, for files of the guest's own. */
static inline const char *guest_path(char *to, size_t size, const char *suffix)
{
    snprintf(to, size, "%s.%s", guest_env("GUEST_STATUS"), suffix);
    return to;
}

/* To be called first. The status file gets a number that no guest uses. */
static inline void guest_begin(void)
{
    guest_stop_path = guest_env("GUEST_STOP");
    int fd = SYS(open(guest_env("GUEST_STATUS"), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    guest_status_fd = SYS(fcntl(fd, F_DUPFD_CLOEXEC, 240));
    SYS(close(fd));
    guest_clock_ns = clock_ns(CLOCK_MONOTONIC);
}

/* The state stands; `READY` on stdout unless the guest tests its stdout. */
static inline void guest_ready_quietly(void)
{
    guest_counter = 1;
    guest_status("running");
}

static inline void guest_ready(void)
{
    guest_ready_quietly();
    printf("READY\n");
    fflush(stdout);
}

static inline int guest_stopping(void)
{
    return access(guest_stop_path, F_OK) == 0;
}

/* One turn is done; false when the guest is to end. Never EINTR, never back in time. */
static inline int guest_running(void)
{
    struct timespec nap = {.tv_nsec = 2000000};
    guest_counter++;
    guest_status("running");
    CHECK(nanosleep(&nap, NULL) == 0, "nanosleep of 2 ms: %s", strerror(errno));
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    CHECK(now >= guest_clock_ns, "CLOCK_MONOTONIC went back: %llu, then %llu",
          (unsigned long long)guest_clock_ns, (unsigned long long)now);
    CHECK(now - guest_clock_ns < MAX_CLOCK_JUMP_NS, "CLOCK_MONOTONIC jumped: %llu, then %llu",
          (unsigned long long)guest_clock_ns, (unsigned long long)now);
    guest_clock_ns = now;
    return !guest_stopping();
}

__attribute__((noreturn)) static inline void guest_success_quietly(void)
{
    guest_status("done");
    fflush(stdout);
    _exit(0);
}

__attribute__((noreturn)) static inline void guest_success(void)
{
    printf("EXIT-SUCCESS\n");
    guest_success_quietly();
}

/* For how long the hypervisor has had the CPUs, nanoseconds (`steal` of proc_stat(5)): by so much a
 * sleep may end later after a move. */
static inline uint64_t guest_stolen_ns(void)
{
    unsigned long long steal = 0;
    FILE *stat = fopen("/proc/stat", "re");
    CHECK(stat != NULL, "/proc/stat: %s", strerror(errno));
    CHECK_EQ(fscanf(stat, "cpu %*u %*u %*u %*u %*u %*u %*u %llu", &steal), 1, "/proc/stat");
    fclose(stat);
    return steal * (NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
}

/* Sum of the pauses of all moves so far, in nanoseconds. */
static inline uint64_t guest_pauses_ns(void)
{
    const char *path = getenv("GUEST_PAUSES");
    char text[32] = "";
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    return n > 0 ? strtoull(text, NULL, 10) * 1000000ULL : 0;
}

/* Reads a whole small file (of /proc, say). Returns its length. */
static inline size_t guest_slurp(const char *path, char *to, size_t size)
{
    int fd = SYS(open(path, O_RDONLY | O_CLOEXEC));
    size_t used = 0;
    ssize_t n;
    while (used < size - 1 && (n = read(fd, to + used, size - 1 - used)) > 0)
        used += (size_t)n;
    to[used] = 0;
    close(fd);
    return used;
}

/* The value of a line `Name:<blank>value` of /proc/self/status; "" when missing. */
static inline void guest_proc_status(const char *name, char *to, size_t size)
{
    static __thread char text[8192];
    guest_slurp("/proc/self/status", text, sizeof(text));
    size_t len = strlen(name);
    to[0] = 0;
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : 0)
        if (!strncmp(line, name, len) && line[len] == ':') {
            line += len + 1;
            line += strspn(line, " \t");
            snprintf(to, size, "%.*s", (int)strcspn(line, "\n"), line);
            return;
        }
}

/* Fills SIZE bytes with a pattern that SEED decides; checks it. */
static inline uint64_t guest_mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdULL;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53ULL;
    return x ^ (x >> 33);
}

static inline void guest_fill(void *at, size_t size, uint64_t seed)
{
    uint64_t *words = at;
    for (size_t i = 0; i < size / 8; i++)
        words[i] = guest_mix(seed + i);
}

static inline void guest_verify(const void *at, size_t size, uint64_t seed, const char *what)
{
    const uint64_t *words = at;
    for (size_t i = 0; i < size / 8; i++)
        CHECK(words[i] == guest_mix(seed + i), "%s: word %zu at %p: expected %#llx, got %#llx",
              what, i, (const void *)&words[i], (unsigned long long)guest_mix(seed + i),
              (unsigned long long)words[i]);
}

static inline void guest_verify_zero(const void *at, size_t size, const char *what)
{
    const uint64_t *words = at;
    for (size_t i = 0; i < size / 8; i++)
        CHECK(words[i] == 0, "%s: word %zu expected 0, got %#llx", what, i,
              (unsigned long long)words[i]);
}

#define PAGE 4096UL
#endif
