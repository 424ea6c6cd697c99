/* Both ends of the connections that are measured.
 *
 * connection serve PORT: prints "ready" when it listens, does what its clients order, one at a time,
 * and at SIGTERM prints "intact" and ends.
 *
 * connection client ADDRESS PORT: connects, prints "ready", and answers each line of its standard
 * input with one, until that ends:
 *   rtt SIZE MS   round trips of messages of SIZE bytes for MS milliseconds: their median, us
 *   flow SIZE MS  messages of SIZE bytes to the server for MS milliseconds, until it has read all: MB/s
 *   gaps          a short request every millisecond until a line comes: the longest time between two
 *                 answers, ms
 *   open N        makes so many more connections, which are used once and then idle
 *
 * An order is its letter in one byte. Echo: messages follow whose length is in the next four bytes,
 * each sent back; the last begins with 1, the others with 0. Sink: bytes follow, of which only the
 * last one is 1; the server then answers with one byte. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST (64 << 10)
#define ROUNDS (1 << 20)

static volatile sig_atomic_t stopped;
static char out[MOST], in[MOST];

static void stop(int sig)
{
	(void)sig;
	stopped = 1;
}

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static double now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int get(int fd, char *to, size_t n)
{
	for (ssize_t got; n; to += got, n -= (size_t)got)
		if ((got = read(fd, to, n)) <= 0)
			return 0;
	return 1;
}

static int put(int fd, const char *from, size_t n)
{
	for (ssize_t put; n; from += put, n -= (size_t)put)
		if ((put = send(fd, from, n, MSG_NOSIGNAL)) <= 0)
			return 0;
	return 1;
}

static void at_once(int fd)
{
	int yes = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
}

/* What one client orders; 0 when it is gone. */
static int obey(int fd)
{
	char order;
	uint32_t size;
	ssize_t got;

	if (!get(fd, &order, 1))
		return 0;
	if (order == 'e') {
		if (!get(fd, (char *)&size, sizeof(size)) || size > MOST)
			return 0;
		do {
			if (!get(fd, in, size) || !put(fd, in, size))
				return 0;
		} while (!in[0]);
		return 1;
	}
	do {
		if ((got = read(fd, in, MOST)) <= 0)
			return 0;
	} while (!in[got - 1]);
	return put(fd, in, 1);
}

static int serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct sigaction action = { .sa_handler = stop };
	int yes = 1, no = 0, listener = socket(AF_INET6, SOCK_STREAM, 0), watch = epoll_create1(0);
	struct epoll_event event = { .events = EPOLLIN };

	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	event.data.fd = listener;
	if (bind(listener, (void *)&any, sizeof(any)) || listen(listener, 1024) ||
	    epoll_ctl(watch, EPOLL_CTL_ADD, listener, &event) || sigaction(SIGTERM, &action, NULL))
		die("serve");
	puts("ready");
	fflush(stdout);
	while (!stopped) {
		if (epoll_wait(watch, &event, 1, -1) != 1)
			continue;
		int fd = event.data.fd;
		if (fd != listener) {
			if (!obey(fd))
				close(fd);
			continue;
		}
		fd = accept(listener, NULL, NULL);
		at_once(fd);
		event.data.fd = fd;
		if (fd < 0 || epoll_ctl(watch, EPOLL_CTL_ADD, fd, &event))
			die("accept");
	}
	puts("intact");
	return 0;
}

static int reach(const char *address, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, address, &to.sin_addr);
	for (int tries = 0; tries < 500; tries++, usleep(20000)) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		if (!connect(fd, (void *)&to, sizeof(to)))
			return at_once(fd), fd;
		close(fd);
	}
	die("connect");
	return -1;
}

static void say(double value)
{
	printf("%.3f\n", value);
	fflush(stdout);
}

static void order_echo(int fd, uint32_t size)
{
	char order[5] = "e";

	memcpy(order + 1, &size, sizeof(size));
	if (!put(fd, order, sizeof(order)))
		die("order");
}

static void echo(int fd, uint32_t size, int last)
{
	out[0] = (char)last;
	if (!put(fd, out, size) || !get(fd, in, size) || memcmp(in, out, size)) {
		fputs("an echo is not what was sent\n", stderr);
		exit(3);
	}
}

static int by_size(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

static void rtt(int fd, uint32_t size, double ms)
{
	static float rounds[ROUNDS];
	int n = 0;
	double begin = now_us(), before = begin, after;

	order_echo(fd, size);
	do {
		echo(fd, size, 0);
		after = now_us();
		rounds[n++] = (float)(after - before);
		before = after;
	} while (after < begin + ms * 1e3 && n < ROUNDS);
	echo(fd, size, 1);
	qsort(rounds, (size_t)n, sizeof(*rounds), by_size);
	say(rounds[n / 2]);
}

static void flow(int fd, uint32_t size, double ms)
{
	double begin, bytes = 0;
	int last;

	if (!put(fd, "s", 1))
		die("order");
	out[0] = 0;
	begin = now_us();
	do {
		last = now_us() > begin + ms * 1e3;
		out[size - 1] = (char)last;
		if (!put(fd, out, size))
			die("flow");
		bytes += size;
	} while (!last);
	if (!get(fd, in, 1))
		die("flow");
	out[size - 1] = 0;
	say(bytes / (now_us() - begin));
}

static void gaps(int fd)
{
	struct pollfd line = { .fd = 0, .events = POLLIN };
	double before, after, longest = 0;

	order_echo(fd, 64);
	echo(fd, 64, 0);
	puts("going");
	fflush(stdout);
	for (before = now_us(); !poll(&line, 1, 0); before = after) {
		usleep(1000);
		echo(fd, 64, 0);
		after = now_us();
		if (after - before > longest)
			longest = after - before;
	}
	echo(fd, 64, 1);
	say(longest / 1e3);
}

int main(int argc, char **argv)
{
	static char line[128];
	struct rlimit files;
	unsigned size;
	double ms;

	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (argc == 3 && !strcmp(argv[1], "serve"))
		return serve(atoi(argv[2]));
	if (argc != 4)
		return 2;
	int fd = reach(argv[2], atoi(argv[3]));
	puts("ready");
	fflush(stdout);
	/* Unbuffered: a line that poll(2) shows has not been read. */
	setvbuf(stdin, NULL, _IONBF, 0);
	for (; fgets(line, sizeof(line), stdin); memset(out, 0, sizeof(out))) {
		if (sscanf(line, "rtt %u %lf", &size, &ms) == 2 && size && size <= MOST)
			rtt(fd, size, ms);
		else if (sscanf(line, "flow %u %lf", &size, &ms) == 2 && size && size <= MOST)
			flow(fd, size, ms);
		else if (!strncmp(line, "gaps", 4))
			gaps(fd);
		else if (sscanf(line, "open %u", &size) == 1) {
			for (unsigned i = 0; i < size; i++) {
				int more = reach(argv[2], atoi(argv[3]));
				order_echo(more, 8);
				echo(more, 8, 1);
			}
			say(size);
		}
	}
	return 0;
}
