/* streams: counts on standard output while it echoes what comes on standard input there, too; at its end it says how much that was. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static volatile int over;
static long counted, echoed;

static void say(const char *what, long n, const char *rest)
{
	char b[256];
	int len = snprintf(b, sizeof b, "%s %ld%s\n", what, n, rest);
	pthread_mutex_lock(&mu);
	for (int at = 0; at < len;) {
		ssize_t w = write(1, b + at, len - at);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			_exit(9);
		at += w;
	}
	pthread_mutex_unlock(&mu);
}

static void *count(void *arg)
{
	while (!over) {
		say("o", ++counted, " ......................................................................");
		usleep(500);
	}
	return arg;
}

int main(void)
{
	char line[64];
	int n = 0;
	pthread_t t;

	pthread_create(&t, NULL, count, NULL);
	for (;;) {
		ssize_t r = read(0, line + n, 1);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			break;
		if (line[n] != '\n' && n < 62) {
			n++;
			continue;
		}
		line[n] = 0;
		n = 0;
		echoed++;
		say("i", atol(line), "");
	}
	over = 1;
	pthread_join(t, NULL);
	char rest[32];
	snprintf(rest, sizeof rest, " %ld", echoed);
	say("end", counted, rest);
	return 7;
}
