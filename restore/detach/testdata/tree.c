// A tree with every kind of thing that refers to a file. "tree ROOT" makes ROOT the root of a mount namespace of its own and goes on there. It
// reads commands from standard input: "check" answers "OK" or what is wrong, one line; "many" opens 64 files more and maps 100.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char bad[4096];
static void fail(const char *f, ...) {
	va_list v;
	va_start(v, f);
	size_t n = strlen(bad);
	vsnprintf(bad + n, sizeof bad - n - 2, f, v);
	strcat(bad, "; ");
}
#define MUST(c) do { if (!(c)) { dprintf(2, "%d: %s: %s\n", __LINE__, #c, strerror(errno)); exit(1); } } while (0)
#define WANT(c) do { if (!(c)) fail("line %d: %s (%s)", __LINE__, #c, strerror(errno)); } while (0)

struct box { volatile uint64_t a, b, child, eintr, asleep; };
static struct box *box; // shared mapping of /shared
static int data, dupdata, cloexec, gone, logfd, dirfd_, locked, flocked, ofd, ino, lis, dgram, ep, epl, opath, wd1, wd3, stay, staydir, fr, fw, frw, fep;
static char *priv, *ro, *staymap;
static volatile int woken, met;
static int idle[2], childcmd[2], childans[2];
static volatile int ticks;
static pid_t child, nobody, ignores, halted, zombie;

static void enter(const char *root) {
	char p[4096];
	MUST(!unshare(CLONE_NEWNS));
	MUST(!mount("", "/", 0, MS_REC | MS_PRIVATE, 0));
	MUST(!mount(root, root, 0, MS_BIND, 0));
	snprintf(p, sizeof p, "%s/proc", root);
	MUST(!mount("proc", p, "proc", 0, 0));
	snprintf(p, sizeof p, "%s/dev/shm", root);
	int shm = open(p, O_PATH | O_DIRECTORY);
	char q[100];
	snprintf(q, sizeof q, "/proc/self/fd/%d", shm);
	snprintf(p, sizeof p, "%s/dev", root);
	MUST(!mount("/dev", p, 0, MS_BIND | MS_REC, 0));
	snprintf(p, sizeof p, "%s/dev/shm", root);
	MUST(!mount(q, p, 0, MS_BIND, 0));
	MUST(!chdir(root));
	MUST(!syscall(SYS_pivot_root, ".", "."));
	MUST(!umount2(".", MNT_DETACH));
	MUST(!chdir("/"));
}

static void tick(int s) { ticks++; }
// Counts up two words of the shared mapping under load: the second may never be ahead.
static void *count(void *x) {
	for (;;) {
		box->a++;
		__sync_synchronize();
		box->b++;
		if ((box->a & 1023) == 0) usleep(1);
	}
}
static void *sleeper(void *x) { // an absolute end in a long time; an interruption must not end it
	for (;;) {
		struct timespec t = {3600, 0};
		box->asleep = 1;
		if (nanosleep(&t, 0)) box->eintr++;
	}
}
static void *reader(void *x) {
	char c;
	for (;;) if (read(idle[0], &c, 1) != 1) box->eintr++;
}
static void *poller(void *x) {
	struct epoll_event e;
	int q = epoll_create1(0);
	for (;;) if (epoll_wait(q, &e, 1, -1) != 0) box->eintr++;
}
static void *futexer(void *x) {
	int word = 0;
	for (;;) if (syscall(SYS_futex, &word, 128, 0, 0, 0, 0)) box->eintr++;
}

static void *fiforeader(void *x) { // waits in read, at an open FIFO
	char c;
	for (;;) if (read(frw, &c, 1) == 1) woken++; else box->eintr++;
}
static void *fifoopener(void *x) { // waits in open, for another
	for (;;) {
		char c;
		int f = open("/met", O_RDONLY), n = 0;
		if (f < 0) { box->eintr++; continue; }
		while (read(f, &c, 1) == 1) n++;
		close(f);
		met += n;
	}
}
static char filled[100000];
static void fill(void) { // more than a FIFO takes by itself
	for (int i = 0; i < (int)sizeof filled; i++) filled[i] = i * 7 + i / 256;
	MUST(write(fw, filled, 70000) == 70000 && write(fw, filled + 70000, 30000) == 30000);
}

static int child_loop(void) {
	char c;
	close(idle[1]);
	for (;;) {
		box->child++;
		if (read(childcmd[0], &c, 1) != 1) _exit(0);
		strcpy(bad, "");
		if (c == 'o') { // the offset is shared: it moves it
			char b[10];
			WANT(read(data, b, 10) == 10 && !memcmp(b, "4567890123", 10));
		}
		struct stat st;
		WANT(!stat("sub", &st) || !stat("/work/sub", &st));
		write(childans[1], bad, strlen(bad) + 1);
	}
}

static int plain(int uid, int how) { // a process that waits, with an open file
	pid_t p = fork();
	if (p) return p;
	if (how == 0) MUST(!chdir("/stays/in"));
	signal(SIGTRAP, how == 1 ? SIG_IGN : SIG_DFL);
	if (how == 2) {
		sigset_t s;
		sigfillset(&s);
		sigprocmask(SIG_BLOCK, &s, 0);
	}
	close(childcmd[1]);
	close(idle[1]);
	if (uid) MUST(!setgid(uid) && !setuid(uid));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_DUMPABLE, 1);
	char c;
	for (;;) if (read(idle[0], &c, 1) != 1) _exit(9);
}

static int try(int (*f)(void)) {
	pid_t p = fork();
	int s;
	if (!p) _exit(f());
	waitpid(p, &s, 0);
	return WEXITSTATUS(s);
}
static int posix_free(void) { int f = open("/locked", O_RDWR); struct flock l = {F_WRLCK, SEEK_SET, 10, 5, 0}; return !fcntl(f, F_SETLK, &l); }
static int flock_free(void) { return !flock(open("/flocked", O_RDWR), LOCK_EX | LOCK_NB); }
static int stay_free(void) { return !flock(open("/stays/f", O_RDWR), LOCK_EX | LOCK_NB); }
static int ofd_free(void) { int f = open("/ofd", O_RDWR); struct flock l = {F_WRLCK, SEEK_SET, 0, 0, 0}; return !fcntl(f, F_OFD_SETLK, &l); }

static void setup(void) {
	char b[1000];
	mkdir("/work", 0755); mkdir("/work/sub", 0755);
	MUST(!chdir("/work/sub"));
	MUST((data = open("/data", O_RDWR | O_CREAT, 0644)) > 2);
	for (int i = 0; i < 1000; i++) b[i] = '0' + i % 10;
	for (int i = 0; i < 20; i++) write(data, b, 1000);
	lseek(data, 1234, SEEK_SET);
	dupdata = dup(data);
	MUST((cloexec = open("/data", O_RDONLY | O_CLOEXEC)) > 0);
	MUST((gone = open("/gone", O_RDWR | O_CREAT, 0600)) > 0);
	write(gone, "unlinked", 8);
	unlink("/gone");
	MUST((logfd = open("/log", O_WRONLY | O_CREAT | O_APPEND, 0644)) > 0);
	MUST((dirfd_ = open("/work", O_RDONLY | O_DIRECTORY)) > 0);
	MUST((opath = open("/data", O_PATH)) > 0);
	int f;
	MUST((f = open("/shared", O_RDWR | O_CREAT, 0644)) > 0);
	ftruncate(f, 8192);
	box = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	close(f);
	MUST((priv = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 0)) != MAP_FAILED);
	strcpy(priv + 4096, "changed");
	madvise(priv, 16384, MADV_DONTDUMP);
	MUST((ro = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 4096)) != MAP_FAILED);
	strcpy(ro, "read only");
	mprotect(ro, 8192, PROT_NONE);
	MUST((locked = open("/locked", O_RDWR | O_CREAT, 0666)) > 0);
	struct flock l = {F_WRLCK, SEEK_SET, 10, 5, 0};
	MUST(!fcntl(locked, F_SETLK, &l));
	MUST((flocked = open("/flocked", O_RDWR | O_CREAT, 0666)) > 0);
	MUST(!flock(flocked, LOCK_EX));
	MUST((ofd = open("/ofd", O_RDWR | O_CREAT, 0666)) > 0);
	struct flock lo = {F_WRLCK, SEEK_SET, 0, 0, 0};
	MUST(!fcntl(ofd, F_OFD_SETLK, &lo));
	mkdir("/stays", 0755); mkdir("/stays/in", 0755); // what one of the tests leaves where it is
	MUST((stay = open("/stays/f", O_RDWR | O_CREAT, 0666)) > 0 && write(stay, "stays", 5) == 5);
	MUST(!flock(stay, LOCK_EX));
	MUST((staydir = open("/stays/in", O_RDONLY | O_DIRECTORY)) > 0);
	MUST((staymap = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, stay, 0)) != MAP_FAILED);
	ino = inotify_init1(IN_NONBLOCK);
	wd1 = inotify_add_watch(ino, "/work/sub", IN_CREATE | IN_DELETE);
	int w2 = inotify_add_watch(ino, "/", IN_MOVE);
	wd3 = inotify_add_watch(ino, "/work", IN_CREATE);
	inotify_rm_watch(ino, w2);
	read(ino, b, sizeof b);
	struct sockaddr_un u = {AF_UNIX, "/work/sock"};
	lis = socket(AF_UNIX, SOCK_STREAM, 0);
	MUST(!bind(lis, (void *)&u, sizeof u) && !listen(lis, 7));
	chmod("/work/sock", 0660);
	strcpy(u.sun_path, "dgram"); // relative
	dgram = socket(AF_UNIX, SOCK_DGRAM, 0);
	MUST(!bind(dgram, (void *)&u, sizeof u));
	ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {EPOLLIN | EPOLLET, {.u64 = 77}};
	MUST(!epoll_ctl(ep, EPOLL_CTL_ADD, ino, &e));
	epl = epoll_create1(0);
	e = (struct epoll_event){EPOLLIN, {.u64 = 88}};
	MUST(!epoll_ctl(epl, EPOLL_CTL_ADD, lis, &e));
	MUST(!mkfifo("/fifo", 0640) && !mkfifo("/packets", 0600) && !mkfifo("/met", 0600));
	MUST((frw = open("/packets", O_RDWR)) > 0 && !fcntl(frw, F_SETFL, O_DIRECT));
	int shmf = open("/dev/shm/segment", O_RDWR | O_CREAT, 0600);
	write(shmf, "shm", 3);
	MUST(!pipe(idle) && !pipe(childcmd) && !pipe(childans));
	child = fork();
	if (!child) { prctl(PR_SET_PDEATHSIG, SIGKILL); close(childcmd[1]); child_loop(); }
	nobody = plain(65534, 0);
	ignores = plain(0, 1);
	halted = plain(0, 2);
	kill(halted, SIGSTOP);
	int s;
	waitpid(halted, &s, WUNTRACED);
	if (!(zombie = fork())) _exit(3);
	siginfo_t si;
	waitid(P_PID, zombie, &si, WEXITED | WNOWAIT);
	// not in the others: nobody else writes to it
	MUST((fr = open("/fifo", O_RDONLY | O_NONBLOCK)) > 0 && (fw = open("/fifo", O_WRONLY)) > 0 && !fcntl(fr, F_SETFL, 0));
	MUST(fcntl(fw, F_SETPIPE_SZ, 1 << 17) == 1 << 17);
	fill();
	fep = epoll_create1(0);
	e = (struct epoll_event){EPOLLIN, {.u64 = 99}};
	MUST(!epoll_ctl(fep, EPOLL_CTL_ADD, fr, &e));
	signal(SIGALRM, tick);
	struct itimerval it = {{0, 1000}, {0, 1000}};
	setitimer(ITIMER_REAL, &it, 0);
	sigset_t blk;
	sigemptyset(&blk); sigaddset(&blk, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &blk, 0); // in the threads
	pthread_t t;
	pthread_create(&t, 0, count, 0);
	pthread_create(&t, 0, sleeper, 0);
	pthread_create(&t, 0, reader, 0);
	pthread_create(&t, 0, poller, 0);
	pthread_create(&t, 0, futexer, 0);
	pthread_create(&t, 0, fiforeader, 0);
	pthread_create(&t, 0, fifoopener, 0);
	pthread_sigmask(SIG_UNBLOCK, &blk, 0);
	while (!box->asleep || !box->b) usleep(100);
	while (read(ino, b, sizeof b) > 0) ;
}

static int many[64];
static char *manymaps[100];
static void open_many(void) {
	for (int i = 0; i < 64; i++) MUST((many[i] = open("/data", O_RDWR)) > 0 && lseek(many[i], i, SEEK_SET) == i);
	for (int i = 0; i < 100; i++) {
		MUST((manymaps[i] = mmap(0, 4096, PROT_READ | PROT_WRITE, i % 2 ? MAP_SHARED : MAP_PRIVATE, many[i % 64], i % 4 * 4096)) != MAP_FAILED);
		if (i % 2 == 0) manymaps[i][0] = i;
	}
}
static void check_many(void) {
	for (int i = 0; i < 64; i++) WANT(lseek(many[i], 0, SEEK_CUR) == i);
	for (int i = 0; i < 100; i++) WANT(manymaps[i][0] == (i % 2 ? '0' + i % 4 * 4096 % 10 : i) && manymaps[i][1] == '0' + (i % 4 * 4096 + 1) % 10);
}

static void offset(const char *want) { // by the child, by the copy, all on one description
	char b[10], a[512] = {0};
	write(childcmd[1], "o", 1);
	WANT(read(childans[0], a, sizeof a) > 0);
	if (a[0]) fail("child: %s", a);
	WANT(lseek(data, 0, SEEK_CUR) == 1244 && lseek(dupdata, 0, SEEK_CUR) == 1244);
	WANT(read(dupdata, b, 10) == 10 && !memcmp(b, "4567890123", 10) && lseek(data, 0, SEEK_CUR) == 1254);
	lseek(data, 1234, SEEK_SET);
}

static void fifos(void) {
	static char got[sizeof filled + 1];
	struct epoll_event e;
	struct stat st, st2;
	int n = 0, f = 0, m = met, o = woken;
	WANT(epoll_wait(fep, &e, 1, 0) == 1 && e.data.u64 == 99);
	WANT(!ioctl(fr, FIONREAD, &n) && n == sizeof filled && fcntl(fr, F_GETPIPE_SZ) == 1 << 17);
	WANT((fcntl(fr, F_GETFL) & ~O_LARGEFILE & ~0100000) == O_RDONLY && (fcntl(fw, F_GETFL) & ~O_LARGEFILE & ~0100000) == O_WRONLY);
	for (int k = 0; n > 0 && k < (int)sizeof filled; k += f) if ((f = read(fr, got + k, sizeof got - k)) <= 0) { fail("FIFO ends after %d: %d", k, f); break; }
	WANT(!memcmp(got, filled, sizeof filled) && !ioctl(fr, FIONREAD, &n) && n == 0 && epoll_wait(fep, &e, 1, 0) == 0);
	WANT((f = open("/fifo", O_WRONLY | O_NONBLOCK)) > 0 && write(f, "by name", 7) == 7 && read(fr, got, 100) == 7);
	WANT(!fstat(fr, &st) && !stat("/fifo", &st2) && st.st_ino == st2.st_ino && st.st_dev == st2.st_dev && (st.st_mode & 07777) == 0640);
	close(f);
	close(fw); // the last writer
	WANT(read(fr, got, 1) == 0);
	WANT((fw = open("/fifo", O_WRONLY)) > 0);
	fill();
	WANT((fcntl(frw, F_GETFL) & (O_DIRECT | O_NONBLOCK | O_ACCMODE)) == (O_DIRECT | O_RDWR));
	WANT(write(frw, "xy", 2) == 2); // a packet: the rest of it is lost to who reads one byte
	WANT((f = open("/met", O_WRONLY)) > 0 && write(f, "abc", 3) == 3);
	close(f);
	for (int i = 0; i < 100000 && (woken == o || met == m); i++) usleep(100);
	WANT(woken == o + 1 && met == m + 3);
}

static void check(void) {
	char b[4096];
	struct stat st, st2;
	bad[0] = 0;
	offset(0);
	fifos();
	if (many[0]) check_many();
	WANT(fcntl(cloexec, F_GETFD) == FD_CLOEXEC && fcntl(data, F_GETFD) == 0 && fcntl(ep, F_GETFD) == FD_CLOEXEC);
	WANT((fcntl(logfd, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY));
	WANT(write(logfd, "line\n", 5) == 5);
	WANT(pread(gone, b, 100, 0) == 8 && !memcmp(b, "unlinked", 8) && !fstat(gone, &st));
	WANT(!fstat(dirfd_, &st) && !stat("/work", &st2) && st.st_ino == st2.st_ino && st.st_dev == st2.st_dev);
	WANT(!fstat(opath, &st) && !stat("/data", &st2) && st.st_ino == st2.st_ino && st.st_dev == st2.st_dev);
	WANT(!strcmp(priv + 4096, "changed") && priv[0] == '0' && priv[8192] == '2');
	mprotect(ro, 8192, PROT_READ);
	WANT(!strcmp(ro, "read only") && ro[4096] == '2');
	mprotect(ro, 8192, PROT_NONE);
	uint64_t b0 = box->b, a = box->a, t = ticks; // volatile: in this order
	WANT(b0 <= a && a > 0);
	for (int i = 0; i < 100000 && (box->a == a || ticks == t); i++) usleep(100);
	WANT(box->a != a && ticks != t);
	int f = open("/shared", O_RDONLY);
	uint64_t now;
	WANT(pread(f, &now, 8, 0) == 8 && now >= a);
	close(f);
	WANT(box->eintr == 0);
	WANT(!try(posix_free)); WANT(!try(flock_free)); WANT(!try(ofd_free));
	f = open("/stays/f", O_RDWR);
	WANT(lseek(stay, 0, SEEK_CUR) == 5 && pread(f, b, 100, 0) == 5 && !memcmp(b, "stays", 5));
	staymap[1] = 'T';
	WANT(pread(f, b, 5, 0) == 5 && !memcmp(b, "sTays", 5) && pwrite(f, "st", 2, 0) == 2 && staymap[1] == 't');
	close(f);
	WANT(!try(stay_free));
	WANT(!fstatat(staydir, "../..", &st, 0) && !stat("/", &st2) && st.st_ino == st2.st_ino && st.st_dev == st2.st_dev);
	WANT(!fstat(staydir, &st) && !stat("/stays/in", &st2) && st.st_ino == st2.st_ino && st.st_dev == st2.st_dev);
	snprintf(b, sizeof b, "/proc/%d/cwd/../../data", nobody); // as it would find it
	WANT(!stat(b, &st) && !stat("/data", &st2) && st.st_ino == st2.st_ino && st.st_dev == st2.st_dev);
	WANT(getcwd(b, sizeof b) && !strcmp(b, "/work/sub"));
	close(open("made", O_CREAT | O_WRONLY, 0600));
	struct epoll_event e[4];
	WANT(epoll_wait(ep, e, 4, 10000) == 1 && e[0].data.u64 == 77);
	int n = read(ino, b, sizeof b);
	WANT(n >= (int)sizeof(struct inotify_event) && ((struct inotify_event *)b)->wd == wd1 && ((struct inotify_event *)b)->mask == IN_CREATE);
	unlink("made");
	while (read(ino, b, sizeof b) > 0) ;
	close(open("../made", O_CREAT | O_WRONLY, 0600));
	n = read(ino, b, sizeof b);
	WANT(n >= (int)sizeof(struct inotify_event) && ((struct inotify_event *)b)->wd == wd3);
	unlink("../made");
	while (read(ino, b, sizeof b) > 0) ;
	WANT(epoll_wait(epl, e, 4, 0) == 0);
	struct sockaddr_un u = {AF_UNIX, "/work/sock"};
	int c = socket(AF_UNIX, SOCK_STREAM, 0);
	WANT(!connect(c, (void *)&u, sizeof u));
	WANT(epoll_wait(epl, e, 4, 10000) == 1 && e[0].data.u64 == 88);
	struct ucred cr;
	socklen_t cl = sizeof cr;
	WANT(!getsockopt(c, SOL_SOCKET, SO_PEERCRED, &cr, &cl) && cr.pid == getpid());
	int s = accept(lis, 0, 0);
	WANT(s >= 0 && write(c, "hello", 5) == 5 && read(s, b, 5) == 5);
	close(c); close(s);
	WANT(!stat("/work/sock", &st) && (st.st_mode & 0777) == 0660);
	strcpy(u.sun_path, "dgram");
	c = socket(AF_UNIX, SOCK_DGRAM, 0);
	WANT(sendto(c, "datagram", 8, 0, (void *)&u, sizeof u) == 8 && read(dgram, b, 100) == 8);
	close(c);
	cl = sizeof u;
	WANT(!getsockname(dgram, (void *)&u, &cl) && !strcmp(u.sun_path, "dgram"));
	f = open("/dev/shm/segment", O_RDONLY);
	WANT(read(f, b, 3) == 3);
	close(f);
	WANT(readlink("/proc/self/exe", b, sizeof b) == 5 && !memcmp(b, "/tree", 5));
	WANT(waitpid(nobody, &s, WNOHANG) == 0 && waitpid(ignores, &s, WNOHANG) == 0);
	WANT(waitpid(halted, &s, WNOHANG | WUNTRACED | WCONTINUED) == 0); // nothing has happened to it
	siginfo_t si = {0};
	WANT(!waitid(P_PID, zombie, &si, WEXITED | WNOWAIT | WNOHANG) && si.si_status == 3);
	pid_t p = fork();
	if (!p) { execl("/tree", "tree", "-version", (char *)0); _exit(1); }
	WANT(waitpid(p, &s, 0) == p && WEXITSTATUS(s) == 42);
}

int main(int c, char **v) {
	if (c > 1 && !strcmp(v[1], "-version")) return 42;
	if (c > 1 && v[1][0] == '/') {
		enter(v[1]);
		execl("/tree", "tree", (char *)0);
		return 1;
	}
	close_range(3, ~0u, 0);
	setup();
	check();
	printf("%s\n", bad[0] ? bad : "OK");
	fflush(stdout);
	char cmd[100];
	int n = 0;
	for (;;) { // read restarts by itself: the timer's handler has SA_RESTART
		if (read(0, cmd + n, 1) != 1) exit(0);
		if (cmd[n] != '\n') { n++; continue; }
		cmd[n] = 0; n = 0;
		if (!strcmp(cmd, "many")) open_many();
		if (!strcmp(cmd, "check")) check();
		printf("%s\n", bad[0] ? bad : "OK");
		fflush(stdout);
	}
}
