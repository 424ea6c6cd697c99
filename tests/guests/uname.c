/* uname and gethostname give the home's answers. */
#include "guest.h"
#include <sys/utsname.h>

int main(void)
{
    guest_begin();
    struct utsname before, now;
    char host[256], host_now[256];
    SYS(uname(&before));
    SYS(gethostname(host, sizeof(host)));
    guest_ready();
    do {
        SYS(uname(&now));
        CHECK(!strcmp(now.nodename, before.nodename), "nodename was %s, is %s", before.nodename,
              now.nodename);
        CHECK(!strcmp(now.machine, before.machine), "machine was %s, is %s", before.machine,
              now.machine);
        SYS(gethostname(host_now, sizeof(host_now)));
        CHECK(!strcmp(host, host_now), "the host name was %s, is %s", host, host_now);
    } while (guest_running());
    guest_success();
}
