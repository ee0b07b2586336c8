/* Makes orphans and waits until their new parent has collected all of them.
 *
 *   orphans COUNT      prints the nanoseconds from the first moment they are orphans until the last one is gone
 *
 * It stands outside of the tree it makes: a middle process has COUNT children that end at once and are never waited
 * for; when the middle process ends, all of them go to the supervisor in one moment, dead already. That is the
 * supervisor's whole work and nobody else's: no fork and no exit falls into the measured time.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int main(int count, char **arguments)
{
	long wanted = count > 1 ? atol(arguments[1]) : 0;
	int ready[2], go[2];
	char byte = 0;
	if (wanted < 1 || pipe(ready) || pipe(go))
		return 111;
	volatile pid_t *pids = mmap(NULL, wanted * sizeof *pids, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (pids == MAP_FAILED)
		return 111;
	pid_t middle = fork();
	if (middle == 0) {
		for (long i = 0; i < wanted; i++) {
			pid_t pid = fork();
			if (pid == 0)
				_exit(0);
			if (pid < 0)
				_exit(112);
			pids[i] = pid;
			siginfo_t seen;
			/* Dead before the next one is made, and not collected. */
			if (waitid(P_PID, pid, &seen, WEXITED | WNOWAIT))
				_exit(113);
		}
		if (write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1)
			_exit(114);
		_exit(0);
	}
	close(ready[1]);
	if (middle < 0 || read(ready[0], &byte, 1) != 1)
		return 112;
	int64_t from = now();
	if (write(go[1], &byte, 1) != 1)
		return 113;
	struct timespec gap = { .tv_nsec = 100000 };
	for (long i = 0; i < wanted; i++)
		while (kill(pids[i], 0) == 0 || errno != ESRCH) {
			if (now() - from > 60000000000LL)
				return 114;
			nanosleep(&gap, NULL);
		}
	printf("%lld\n", (long long)(now() - from));
	return 0;
}
