/* User and group ids stay what the process knows them to be. */
#include "guest.h"
#include <sys/fsuid.h>

int main(void)
{
    guest_begin();
    uid_t uid[3];
    gid_t gid[3];
    SYS(getresuid(&uid[0], &uid[1], &uid[2]));
    SYS(getresgid(&gid[0], &gid[1], &gid[2]));
    guest_ready();
    do {
        uid_t u[3];
        gid_t g[3];
        SYS(getresuid(&u[0], &u[1], &u[2]));
        SYS(getresgid(&g[0], &g[1], &g[2]));
        for (int i = 0; i < 3; i++) {
            CHECK_EQ(u[i], uid[i], "a user id");
            CHECK_EQ(g[i], gid[i], "a group id");
        }
        CHECK_EQ(setfsuid((uid_t)-1), (int)uid[1], "the filesystem's user id");
        CHECK_EQ(setfsgid((gid_t)-1), (int)gid[1], "the filesystem's group id");
    } while (guest_running());
    guest_success();
}
