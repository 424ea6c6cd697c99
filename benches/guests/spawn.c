/* Prints the median time in µs of fork(2) + execve(2) of /bin/true + waitpid(2).
 * spawn TIMES */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	int times = argc > 1 ? atoi(argv[1]) : 0, status;
	double *took = times > 0 ? calloc(times, sizeof *took) : NULL;

	if (!took)
		return 2;
	for (int i = 0; i < times; i++) {
		double start = now();
		pid_t child = fork();
		if (child == 0) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(127);
		}
		if (waitpid(child, &status, 0) != child || status != 0)
			return 1;
		took[i] = now() - start;
	}
	qsort(took, times, sizeof *took, ascending);
	printf("%.3f\n", took[times / 2]);
	return 0;
}
