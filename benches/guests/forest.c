/* A process with COUNT children that do nothing.
 *   forest unit COUNT           forks them, kills them, reaps them; prints the time in ms
 *   forest idle COUNT           forks them and prints "ready"; at SIGTERM kills and reaps them, each
 *                               of which must have been there, and prints "intact"
 *   forest signals COUNT TIMES  forks them; TIMES signals with a handler to itself; prints the time
 *                               of one in ns
 * All end by themselves after a quarter of an hour. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t taken;

static void take(int sig)
{
	(void)sig;
	taken++;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int fork_all(pid_t *pids, int count)
{
	for (int i = 0; i < count; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			alarm(900);
			for (;;)
				pause();
		}
		if (pids[i] < 0)
			return perror("fork"), 1;
	}
	return 0;
}

static int end_all(const pid_t *pids, int count)
{
	int status;

	for (int i = 0; i < count; i++)
		if (kill(pids[i], SIGKILL))
			return perror("kill"), 1;
	for (int i = 0; i < count; i++)
		if (waitpid(pids[i], &status, 0) != pids[i] || status != SIGKILL)
			return perror("waitpid"), 1;
	return 0;
}

static void signals(long times)
{
	struct sigaction action = { .sa_handler = take };
	double start;

	sigaction(SIGUSR1, &action, NULL);
	start = now();
	for (long i = 0; i < times; i++)
		raise(SIGUSR1);
	if (taken == times)
		printf("%.1f\n", (now() - start) / times);
}

static void await_end(void)
{
	sigset_t end;
	int sig;

	sigemptyset(&end);
	sigaddset(&end, SIGTERM);
	sigaddset(&end, SIGALRM);
	sigprocmask(SIG_BLOCK, &end, NULL);
	alarm(900);
	puts("ready");
	fflush(stdout);
	sigwait(&end, &sig);
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	int count = argc > 2 ? atoi(argv[2]) : 0;
	pid_t *pids = calloc(count + 1, sizeof *pids);
	double start = now();

	if (!pids || fork_all(pids, count))
		return 2;
	if (!strcmp(what, "idle"))
		await_end();
	if (!strcmp(what, "signals"))
		signals(argc > 3 ? atol(argv[3]) : 1);
	if (end_all(pids, count))
		return puts("damaged"), 1;
	if (!strcmp(what, "unit"))
		printf("%.3f\n", (now() - start) / 1e6);
	if (!strcmp(what, "idle"))
		puts("intact");
	return 0;
}
