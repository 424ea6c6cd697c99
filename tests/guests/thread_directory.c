/* Threads with a working directory and umask of their own (CLONE_FS of unshare(2)), and two that
 * share theirs with the process. */
#include "guest.h"
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>

enum { OWN = 3 };

static char home[256];
static pthread_barrier_t ready;

static void check(const char *directory, mode_t mask)
{
    char now[256];
    CHECK(getcwd(now, sizeof(now)) != NULL, "getcwd");
    CHECK(!strcmp(now, directory), "in %s instead of %s", now, directory);
    CHECK_EQ(umask(mask), mask, "umask");
}

static void *own(void *arg)
{
    static const char *const NAMES[OWN] = {"/", "/tmp", "/usr"};
    int n = (int)(intptr_t)arg;
    SYS(unshare(CLONE_FS));
    SYS(chdir(NAMES[n]));
    umask((mode_t)(020 + n));
    pthread_barrier_wait(&ready);
    while (!guest_stopping())
        check(NAMES[n], (mode_t)(020 + n));
    return NULL;
}

static void *common(void *unused)
{
    pthread_barrier_wait(&ready);
    while (!guest_stopping())
        check(home, 027);
    return unused;
}

int main(void)
{
    guest_begin();
    pthread_t ids[OWN + 1];
    CHECK(getcwd(home, sizeof(home)) != NULL, "getcwd");
    umask(027);
    CHECK_EQ(pthread_barrier_init(&ready, NULL, OWN + 2), 0, "barrier");
    for (int n = 0; n < OWN; n++)
        CHECK_EQ(pthread_create(&ids[n], NULL, own, (void *)(intptr_t)n), 0, "thread");
    CHECK_EQ(pthread_create(&ids[OWN], NULL, common, NULL), 0, "thread");
    pthread_barrier_wait(&ready);
    guest_ready();
    do
        check(home, 027);
    while (guest_running());
    for (int n = 0; n <= OWN; n++)
        pthread_join(ids[n], NULL);
    guest_success();
}
