/* Holds MEBIBYTES of resident memory whose every page differs, counts ticks of 1 ms, and
 * checks the memory when SIGTERM comes: prints "intact" and ends with 0, or "damaged", 1.
 * holder MEBIBYTES [THREADS], of which each only sleeps; prints "ready" when the memory is filled; ends by itself after a quarter
 * of an hour. */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;

static void stop(int sig)
{
	(void)sig;
	stopped = 1;
}

static void *sleeper(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static int sleepers(int threads)
{
	pthread_attr_t small;
	pthread_t thread;
	sigset_t all, before;
	int bad = pthread_attr_init(&small) || pthread_attr_setstacksize(&small, 64 << 10);

	/* Signals are for the first thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	while (!bad && threads-- > 0)
		bad = pthread_create(&thread, &small, sleeper, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return bad;
}

static uint64_t next(uint64_t x)
{
	x ^= x << 13;
	x ^= x >> 7;
	return x ^ x << 17;
}

int main(int argc, char **argv)
{
	size_t words = (argc > 1 ? strtoul(argv[1], NULL, 10) : 0) << 17;
	uint64_t *memory = malloc(words * 8 + 8), x = 1;
	struct sigaction action = { .sa_handler = stop };
	struct timespec tick = { 0, 1000000 };
	unsigned long ticks = 0;

	if (!memory || sigaction(SIGTERM, &action, NULL) || sleepers(argc > 2 ? atoi(argv[2]) : 0))
		return 2;
	for (size_t i = 0; i < words; i++)
		memory[i] = x = next(x);
	puts("ready");
	fflush(stdout);
	while (!stopped && ticks < 900000) {
		nanosleep(&tick, NULL);
		ticks++;
	}
	x = 1;
	for (size_t i = 0; i < words; i++)
		if (memory[i] != (x = next(x)))
			return puts("damaged"), 1;
	printf("intact after %lu ticks\n", ticks);
	return 0;
}
