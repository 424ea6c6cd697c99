/* Holds MEBIBYTES of resident memory whose every page differs, counts ticks of 1 ms, and
 * checks the memory when SIGTERM comes: prints "intact" and ends with 0, or "damaged", 1.
 * holder MEBIBYTES; prints "ready" when the memory is filled; ends by itself after a quarter
 * of an hour. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile sig_atomic_t stopped;

static void stop(int sig)
{
	(void)sig;
	stopped = 1;
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

	if (!memory || sigaction(SIGTERM, &action, NULL))
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
