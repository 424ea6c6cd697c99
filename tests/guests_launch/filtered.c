/* For each byte of stdin: the errno of io_uring_setup(2) in each of three threads, and a new
 * inotify watch on the folder of the argument. One more thread sleeps and never sees EINTR. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int ask[2][2], answer[2][2];

static int ring_errno(void)
{
    return syscall(SYS_io_uring_setup, 1, NULL) < 0 ? errno : 0;
}

static void *asked(void *arg)
{
    long n = (long)arg;
    char byte;
    while (read(ask[n][0], &byte, 1) == 1) {
        int got = ring_errno();
        if (write(answer[n][1], &got, sizeof(got)) != sizeof(got))
            _exit(3);
    }
    _exit(4);
}

static void *sleeper(void *arg)
{
    struct timespec nap = {.tv_nsec = 200000000};
    while (nanosleep(&nap, NULL) == 0)
        ;
    _exit(5);
    return arg;
}

int main(int argc, char **argv)
{
    pthread_t t;
    if (argc < 2)
        return 2;
    int fd = inotify_init();
    for (long n = 0; n < 2; n++)
        if (pipe(ask[n]) || pipe(answer[n]) || pthread_create(&t, NULL, asked, (void *)n))
            return 2;
    if (pthread_create(&t, NULL, sleeper, NULL))
        return 2;
    printf("%d\n", fd);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) == 1) {
        int got[2];
        for (int n = 0; n < 2; n++)
            if (write(ask[n][1], &byte, 1) != 1 ||
                read(answer[n][0], &got[n], sizeof(int)) != sizeof(int))
                return 3;
        printf("%d %d %d %d\n", ring_errno(), got[0], got[1],
               inotify_add_watch(fd, argv[1], IN_CREATE));
        fflush(stdout);
    }
    return 9;
}
