/* The floor: the least a supervisor in C can be. No order, no output kept, no back-off, no control, no limits:
 * it starts its services and starts each again when it ends. What others take above it is the price of what they do.
 *
 *   floor SERVICE SOCKET COUNT      runs `SERVICE SOCKET 0` to `SERVICE SOCKET COUNT-1`
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t pids[1024];

static pid_t start(char **arguments, int number)
{
	char text[12];
	char *service[] = { arguments[1], arguments[2], text, NULL };
	snprintf(text, sizeof text, "%d", number);
	pid_t pid = vfork();
	if (pid == 0) {
		setsid();
		execv(service[0], service);
		_exit(127);
	}
	return pid;
}

int main(int count, char **arguments)
{
	int services = count > 3 ? atoi(arguments[3]) : 0;
	if (services < 1 || services > 1024)
		return 111;
	for (int i = 0; i < services; i++)
		pids[i] = start(arguments, i);
	for (;;) {
		pid_t gone = waitpid(-1, NULL, 0);
		if (gone < 0 && errno != EINTR)
			return 112;
		for (int i = 0; i < services; i++)
			if (pids[i] == gone)
				pids[i] = start(arguments, i);
	}
}
