/* Prints the time in ns for one byte to go through a pipe to another process and back.
 * pingpong ROUNDS. Both processes stay on one CPU, so that the scheduler's choice of
 * CPUs is not what is measured. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int stay_on_this_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	return sched_setaffinity(0, sizeof set, &set);
}

static int echo(int in, int out)
{
	char byte;

	while (read(in, &byte, 1) == 1)
		if (write(out, &byte, 1) != 1)
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	long rounds = argc > 1 ? atol(argv[1]) : 0;
	int there[2], back[2], status;
	char byte = 'x';

	if (rounds <= 0 || stay_on_this_cpu() || pipe(there) || pipe(back))
		return 1;
	pid_t child = fork();
	if (child == 0) {
		close(there[1]);
		_exit(echo(there[0], back[1]));
	}
	double start = now();
	for (long i = 0; i < rounds; i++)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			return 1;
	printf("%.1f\n", (now() - start) / rounds);
	close(there[1]);
	return waitpid(child, &status, 0) != child || status != 0;
}
