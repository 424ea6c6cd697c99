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

/* All of a thread, as calls tell: reading /proc all the time would keep it from moving. */
struct sets {
    uint64_t effective, permitted, inheritable, bounding, ambient;
    int securebits;
    uid_t uids[3];
    gid_t gids[3];
};

static struct sets read_all(void)
{
    struct sets now;
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    memset(&now, 0, sizeof(now));
    SYS(syscall(SYS_capget, &head, data));
    for (int i = 0; i < 2; i++) {
        now.effective |= (uint64_t)data[i].effective << 32 * i;
        now.permitted |= (uint64_t)data[i].permitted << 32 * i;
        now.inheritable |= (uint64_t)data[i].inheritable << 32 * i;
    }
    for (int cap = 0; cap < 64; cap++) {
        now.bounding |= (uint64_t)(prctl(PR_CAPBSET_READ, cap) == 1) << cap;
        now.ambient |= (uint64_t)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1) << cap;
    }
    now.securebits = prctl(PR_GET_SECUREBITS);
    SYS(getresuid(&now.uids[0], &now.uids[1], &now.uids[2]));
    SYS(getresgid(&now.gids[0], &now.gids[1], &now.gids[2]));
    return now;
}

static __thread struct sets before;

static void setup(int n)
{
    if (is_privileged())
        setup_privileged(n);
    else
        SYS(prctl(PR_SET_KEEPCAPS, n % 2));
    before = read_all();
}

#define SAME(what)                                                                                \
    CHECK(now.what == before.what, "holder %d: %s %#llx, was %#llx", n, #what,                    \
          (unsigned long long)now.what, (unsigned long long)before.what)

static void check(int n)
{
    struct sets now = read_all();
    SAME(effective);
    SAME(permitted);
    SAME(inheritable);
    SAME(bounding);
    SAME(ambient);
    SAME(securebits);
    for (int i = 0; i < 3; i++) {
        SAME(uids[i]);
        SAME(gids[i]);
    }
}

int main(void)
{
    guest_begin();
    all = read_all().permitted;
    each_hold(6, 1, setup, check);
    guest_success();
}
