/* Keyrings of a thread, of the process and of a session: they are all there, or, after a move, none
 * is. */
#include "guest.h"
#include <linux/keyctl.h>

enum { THREAD = -1, PROCESS = -2, SESSION = -3, RINGS = 3 };

static const int RINGS_OF[RINGS] = {THREAD, PROCESS, SESSION};
static long rings[RINGS], keys[RINGS];

static long find(int ring)
{
    return syscall(SYS_keyctl, KEYCTL_SEARCH, ring, "user", "vosrun guest", 0);
}

static int count(void)
{
    int found = 0;
    for (int n = 0; n < RINGS; n++)
        found += find(RINGS_OF[n]) == keys[n];
    return found;
}

int main(void)
{
    guest_begin();
    SYS(syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL));
    for (int n = 0; n < RINGS; n++) {
        keys[n] = syscall(SYS_add_key, "user", "vosrun guest", "secret", 6, RINGS_OF[n]);
        if (keys[n] == -1 && errno == EDQUOT)
            skip("its user has all the keys that he may have");
        SYS(keys[n]);
        rings[n] = SYS(syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, RINGS_OF[n], 0));
    }
    guest_ready();
    int there = RINGS;
    do {
        int now = count();
        if (now != there)
            /* A move came in between. */
            now = count();
        CHECK(now == there || now == 0, "%d of %d keys", now, RINGS);
        there = now;
        long ring = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, THREAD, 0);
        CHECK(ring == (there ? rings[0] : -1) || count() != there, "the thread's keyring is %ld", ring);
    } while (guest_running());
    guest_success();
}
