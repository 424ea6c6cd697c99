/* Capability sets and securebits of each thread and each process: inheritable, permitted, effective,
 * bounding, ambient; one that is inheritable but bounded, one that is ambient although no more may
 * be, one that was kept over a change of the user. */
#include "each.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>

#define CAP(name) (1ULL << (name))

static void set(uint64_t effective, uint64_t permitted, uint64_t inheritable)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    for (int i = 0; i < 2; i++) {
        data[i].effective = (uint32_t)(effective >> 32 * i);
        data[i].permitted = (uint32_t)(permitted >> 32 * i);
        data[i].inheritable = (uint32_t)(inheritable >> 32 * i);
    }
    SYS(syscall(SYS_capset, &head, data));
}

static void status(const char *name, char *to, size_t size)
{
    char text[8192];
    guest_slurp("/proc/thread-self/status", text, sizeof(text));
    char *line = strstr(text, name);
    CHECK(line, "no %s", name);
    line += strlen(name);
    line += strspn(line, ": \t");
    snprintf(to, size, "%.*s", (int)strcspn(line, "\n"), line);
}

static uint64_t all;

static void raise_ambient(int cap)
{
    SYS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0));
}

static void setup_privileged(int n)
{
    switch (n) {
    case 0:
        set(all, all, CAP(CAP_NET_RAW) | CAP(CAP_KILL));
        raise_ambient(CAP_NET_RAW);
        break;
    case 1:
        set(all, all, CAP(CAP_SYS_TIME) | CAP(CAP_KILL));
        SYS(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
        SYS(prctl(PR_CAPBSET_DROP, CAP_SYS_BOOT));
        raise_ambient(CAP_KILL);
        set(CAP(CAP_KILL), CAP(CAP_CHOWN) | CAP(CAP_KILL), CAP(CAP_SYS_TIME) | CAP(CAP_KILL));
        break;
    case 2:
        SYS(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP));
        break;
    case 3:
        set(all, all, CAP(CAP_CHOWN));
        raise_ambient(CAP_CHOWN);
        SYS(prctl(PR_SET_SECUREBITS, SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
        set(CAP(CAP_CHOWN), CAP(CAP_CHOWN), CAP(CAP_CHOWN));
        break;
    case 4:
        SYS(prctl(PR_SET_KEEPCAPS, 1));
        SYS(syscall(SYS_setresgid, 1234, 1234, 1234));
        SYS(syscall(SYS_setresuid, 1234, 1234, 1234));
        set(CAP(CAP_NET_BIND_SERVICE), CAP(CAP_NET_BIND_SERVICE) | CAP(CAP_KILL), 0);
        break;
    default:
        set(0, 0, 0);
    }
}

static __thread char before[8][64];
static const char *const SETS[] = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid"};

static void read_all(char to[8][64])
{
    for (size_t i = 0; i < COUNT(SETS); i++)
        status(SETS[i], to[i], 64);
    snprintf(to[7], 64, "securebits %#x", prctl(PR_GET_SECUREBITS));
}

static void setup(int n)
{
    if (is_privileged())
        setup_privileged(n);
    else
        SYS(prctl(PR_SET_KEEPCAPS, n % 2));
    read_all(before);
}

static void check(int n)
{
    char now[8][64];
    read_all(now);
    for (size_t i = 0; i < COUNT(before); i++)
        CHECK(!strcmp(now[i], before[i]), "holder %d, %s: %s, was %s", n,
              i < COUNT(SETS) ? SETS[i] : "prctl", now[i], before[i]);
}

int main(void)
{
    char text[64];
    guest_begin();
    status("CapPrm", text, sizeof(text));
    all = strtoull(text, NULL, 16);
    each_hold(6, 1, setup, check);
    guest_success();
}
