/* The service every supervisor of the bench runs: notes the clock as the first thing main() does, reports it, stays.
 *
 *   service SOCKET NUMBER              reports, then waits for signals
 *   service                            the same with /bench.sock and the number its directory is named by: the form
 *                                      for supervisors whose services are a program `run` in a directory
 *   service SOCKET NUMBER LINES        reports, writes LINES numbered lines of 8 bytes to standard output, one each
 *                                      100 us, reports a second time, waits
 *
 * A report is one datagram: the clock (CLOCK_MONOTONIC, nanoseconds, i64) and NUMBER (u64), in the machine's order.
 * The kernel adds the sender's process number as the receiver sees it (SCM_CREDENTIALS).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int report(const char *path, int64_t at, uint64_t number)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int64_t words[2] = { at, (int64_t)number };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || strlen(path) >= sizeof to.sun_path)
		return 1;
	strcpy(to.sun_path, path);
	if (sendto(fd, words, sizeof words, 0, (struct sockaddr *)&to, sizeof to) != sizeof words)
		return 1;
	return close(fd);
}

int main(int count, char **arguments)
{
	int64_t at = now();
	char here[256] = "/";
	if (count < 3 && !getcwd(here, sizeof here))
		return 111;
	const char *path = count < 3 ? "/bench.sock" : arguments[1];
	uint64_t number = strtoull(count < 3 ? strrchr(here, '/') + 1 : arguments[2], NULL, 10);
	if (report(path, at, number))
		return 111;
	if (count > 3) {
		long lines = atol(arguments[3]);
		struct timespec gap = { .tv_nsec = 100000 };
		for (long i = 0; i < lines; i++) {
			char line[9];
			snprintf(line, sizeof line, "%07ld\n", i % 10000000);
			if (write(1, line, 8) != 8)
				return 112;
			nanosleep(&gap, NULL);
		}
		report(path, now(), number);
	}
	for (;;)
		pause();
}
