// journal DIR: writes numbered lines to DIR/journal, each appended and synced, and between them makes, renames, links and removes names.
// Whatever fails, or is there although it was removed, ends it with a last line that says so. SIGTERM ends it between two lines.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile sig_atomic_t stop;
static int fd;

static void on_term(int s) { (void)s; stop = 1; }

static void check(int ok, const char *what, long n)
{
	if (ok)
		return;
	dprintf(fd, "FAIL %s of %ld: %s\n", what, n, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc != 2 || chdir(argv[1]))
		return 2;
	struct sigaction sa = {.sa_handler = on_term, .sa_flags = SA_RESTART};
	sigaction(SIGTERM, &sa, NULL);
	fd = open("journal", O_CREAT | O_EXCL | O_WRONLY | O_APPEND, 0600);
	if (fd < 0)
		return 2;
	for (long n = 1; !stop; n++) {
		char line[32];
		int len = snprintf(line, sizeof line, "%ld\n", n);
		check(write(fd, line, len) == len, "write", n);
		check(!fdatasync(fd), "fdatasync", n);
		int f = open("new", O_CREAT | O_EXCL | O_RDWR, 0600);
		check(f >= 0, "create", n);
		check(pwrite(f, line, len, 0) == len, "pwrite", n);
		char back[32] = "";
		check(pread(f, back, sizeof back, 0) == len && !memcmp(line, back, len), "pread", n);
		check(!ftruncate(f, 1) && !close(f), "truncate", n);
		check(!mkdir("dir", 0700), "mkdir", n);
		check(!rename("new", "dir/old"), "rename", n);
		check(!link("dir/old", "second"), "link", n);
		check(!unlink("dir/old"), "unlink", n);
		check(!rmdir("dir"), "rmdir", n);
		struct stat st;
		check(!stat("second", &st) && st.st_size == 1 && st.st_nlink == 1, "stat", n);
		check(!unlink("second"), "second unlink", n);
	}
	return 0;
}
