/* Threads come and go all the time; every second of them lasts. Prints its pid, ends with
 * code 9 when stdin ends. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int made;

static void *brief(void *arg) { return arg; }

static void *breeder(void *arg)
{
    for (;;) {
        pthread_t t;
        if (!pthread_create(&t, NULL, brief, NULL))
            pthread_join(t, NULL);
        atomic_fetch_add(&made, 1);
    }
    return arg;
}

int main(void)
{
    pthread_t t;
    for (int i = 0; i < 4; i++)
        pthread_create(&t, NULL, breeder, NULL);
    printf("%d\n", getpid());
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) == 1) {
        int before = made;
        while (made < before + 100)
            usleep(100);
        printf("alive\n");
        fflush(stdout);
    }
    exit(9);
}
