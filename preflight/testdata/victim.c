// A process with one peculiarity, chosen by its first argument. It prints "ready" when it has it (or "absent: errno" if the
// kernel lacks it) and then waits until its standard input ends. Built by the tests.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <linux/bpf.h>
#include <linux/aio_abi.h>
#include <linux/vm_sockets.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static char **args;

static void absent(void)
{
	printf("absent: %s\n", strerror(errno));
	fflush(stdout);
	_exit(0);
}
static int must(long r)
{
	if (r < 0)
		absent();
	return (int)r;
}
static void wait_end(void)
{
	char c;
	while (read(0, &c, 1) > 0 || errno == EINTR)
		errno = 0;
}
static void ready(void)
{
	printf("ready\n");
	fflush(stdout);
	wait_end();
	_exit(0);
}
// The child lives as long as this process.
static int child(void)
{
	int me = getpid(), pid = must(fork());
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != me) // it has ended already
		_exit(0);
	return 0;
}
static struct sockaddr_un name(const char *s)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	strncpy(a.sun_path, s, sizeof a.sun_path - 1);
	return a;
}

static void plain(void) {}
static void io_uring(void)
{
	char params[120] = { 0 };
	must(syscall(SYS_io_uring_setup, 8, params));
}
static void userfaultfd_(void) { must(syscall(SYS_userfaultfd, O_CLOEXEC)); }
static void perf(void)
{
	struct perf_event_attr a = { .type = PERF_TYPE_SOFTWARE, .size = sizeof a, .config = PERF_COUNT_SW_TASK_CLOCK };
	must(syscall(SYS_perf_event_open, &a, 0, -1, -1, 0));
}
static void bpf_map(void)
{
	union bpf_attr a = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 8, .max_entries = 1 };
	must(syscall(SYS_bpf, BPF_MAP_CREATE, &a, sizeof a));
}
static int ruleset(void)
{
	struct landlock_ruleset_attr a = { .handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_SOCK };
	return must(syscall(444, &a, sizeof a, 0));
}
static void landlock_ruleset(void) { ruleset(); }
static void landlock(void)
{
	int fd = ruleset();
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(syscall(446, fd, 0));
	close(fd);
}
static void mdwe(void) { must(prctl(65, 1, 0, 0, 0)); }
static void nnp(void) { must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)); }
static void mseal_(void)
{
	void *p = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(syscall(462, p, 4096, 0));
}
static void mptcp(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int s = must(socket(AF_INET, SOCK_STREAM, 262));
	must(bind(s, (void *)&a, sizeof a));
	must(listen(s, 1));
}
static void vsock(void) { must(socket(AF_VSOCK, SOCK_STREAM, 0)); }
static void alg(void) { must(socket(38, SOCK_SEQPACKET, 0)); }
static void icmp(void) // allowed by a sysctl of the network namespace
{
	must(unshare(CLONE_NEWNET));
	must(write(must(open("/proc/sys/net/ipv4/ping_group_range", O_WRONLY | O_CLOEXEC)), "0 0", 3));
	must(socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP));
}
static void unix_connect(void)
{
	struct sockaddr_un a = name(args[2]);
	int s = must(socket(AF_UNIX, SOCK_STREAM, 0));
	must(connect(s, (void *)&a, sizeof a));
}
static void unix_dgram(void)
{
	struct sockaddr_un a = name(args[2]);
	int s = must(socket(AF_UNIX, SOCK_DGRAM, 0));
	must(connect(s, (void *)&a, sizeof a));
}
static void unix_inside(void)
{
	int p[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, p));
	if (child()) {
		close(p[0]);
		return;
	}
	close(p[1]);
	for (;;)
		pause();
}
static void sysv(void)
{
	int id = must(shmget(IPC_PRIVATE, 4096, 0600));
	void *p = shmat(id, 0, 0);
	shmctl(id, IPC_RMID, 0);
	must(p == (void *)-1 ? -1 : 0);
}
static void semaphores(void)
{
	int id = must(semget(IPC_PRIVATE, 3, 0600));
	printf("semaphores %d\n", id);
	struct sembuf up = {2, 1, 0};
	must(semop(id, &up, 1));
}
static void queue(void)
{
	struct { long type; char text[4]; } m = {1, "abc"};
	int id = must(msgget(IPC_PRIVATE, 0600));
	printf("queue %d\n", id);
	must(msgsnd(id, &m, 4, 0));
}
static void mqueue(void)
{
	char n[64];
	snprintf(n, sizeof n, "/lazymig-test-%d", getpid());
	must(mq_open(n, O_CREAT | O_RDWR, 0600, NULL));
	mq_unlink(n);
}
static void deleted(void)
{
	int fd = must(open(args[2], O_CREAT | O_RDWR, 0600));
	must(ftruncate(fd, 5 << 20));
	must(unlink(args[2]));
}
static void renamed(void)
{
	char other[4096];
	snprintf(other, sizeof other, "%s.other", args[2]);
	must(open(args[2], O_CREAT | O_RDWR, 0600));
	must(link(args[2], other));
	must(unlink(args[2]));
}
static void writer(void) { must(open(args[2], O_CREAT | O_WRONLY | O_APPEND, 0600)); }
static void traced(void)
{
	int pid = child();
	if (!pid)
		for (;;)
			pause();
	must(ptrace(PTRACE_SEIZE, pid, 0, 0));
}
static void deadline(void)
{
	struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t prio; uint64_t runtime, deadline, period; } a =
		{ 48, 6, 0, 0, 0, 1000000, 100000000, 100000000 };
	must(syscall(SYS_sched_setattr, 0, &a, 0));
}
static void ns_child(void)
{
	int p[2];
	char c;
	must(pipe(p));
	if (!child()) {
		must(unshare(CLONE_NEWUTS));
		must(write(p[1], "x", 1));
		for (;;)
			pause();
	}
	must(read(p[0], &c, 1));
	close(p[0]);
	close(p[1]);
}
static void *ns_thread_run(void *p)
{
	if (unshare(CLONE_NEWNET) < 0)
		absent();
	pthread_barrier_wait(p);
	for (;;)
		pause();
	return 0;
}
static void ns_thread(void)
{
	static pthread_barrier_t b;
	pthread_t t;
	pthread_barrier_init(&b, 0, 2);
	pthread_create(&t, 0, ns_thread_run, &b);
	pthread_barrier_wait(&b);
}
static void *files_thread_run(void *p)
{
	if (unshare(CLONE_FILES) < 0)
		absent();
	pthread_barrier_wait(p);
	for (;;)
		pause();
	return 0;
}
static void files_thread(void)
{
	static pthread_barrier_t b;
	pthread_t t;
	pthread_barrier_init(&b, 0, 2);
	pthread_create(&t, 0, files_thread_run, &b);
	pthread_barrier_wait(&b);
}
static void fixups(void)
{
	cpu_set_t s;
	CPU_ZERO(&s);
	CPU_SET(0, &s);
	must(sched_setaffinity(0, sizeof s, &s));
	must(prctl(PR_SET_TIMERSLACK, 123456));
	must(syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 7));
	must(prctl(67, 1, 0, 0, 0));
}
static void aio_ring(void)
{
	aio_context_t c = 0;
	must(syscall(SYS_io_setup, 4, &c));
}
static void aio_direct(void)
{
	aio_ring();
	must(open(args[2], O_CREAT | O_RDWR | O_DIRECT, 0600));
}
static void device(void) { must(open(args[2], O_RDWR)); }
static void secretmem(void)
{
	int fd = must(syscall(447, 0));
	must(ftruncate(fd, 4096));
	must(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED ? -1 : 0);
	close(fd);
}
// With a parent that is not in the tree: the parent prints its child's pid, and both share what was made before.
static int half(void)
{
	int pid = child();
	if (pid)
		printf("child %d\n", pid);
	return pid;
}
static void with_child(void)
{
	if (half())
		ready();
	for (;;)
		pause();
}
static void shared_pipe(void) { int p[2]; must(pipe(p)); with_child(); }
static void shared_eventfd(void) { must(eventfd(0, 0)); with_child(); }
static void shared_epoll(void)
{
	must(epoll_create1(0));
	must(epoll_create1(0));
	must(epoll_create1(0));
	with_child();
}
static void shared_memory(void)
{
	must(mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0);
	with_child();
}
static void shared_memfd(void) { must(memfd_create("x", 0)); with_child(); }
static void shared_unix(void)
{
	int p[2];
	must(socketpair(AF_UNIX, SOCK_STREAM, 0, p));
	with_child();
}
static void shared_listener(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int s = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(s, (void *)&a, sizeof a));
	must(listen(s, 1));
	with_child();
}
static void pidfd_outside(void) { must(syscall(SYS_pidfd_open, getppid(), 0)); }
static void pidfd_inside(void)
{
	int pid = child();
	if (!pid)
		for (;;)
			pause();
	must(syscall(SYS_pidfd_open, pid, 0));
}
static void netns_fd(void)
{
	int own = must(open("/proc/self/ns/net", O_RDONLY));
	must(unshare(CLONE_NEWNET));
	must(open("/proc/self/ns/net", O_RDONLY));
	must(setns(own, 0));
}
static void mount_outside(void) // what its mounts are copies of stays outside
{
	must(open("/dev/null", O_RDONLY));
	must(unshare(CLONE_NEWNS));
}
static void mount_own(void)
{
	must(unshare(CLONE_NEWNS));
	must(open("/dev/null", O_RDONLY));
}
static void kept(void) // what CRIU restores
{
	int p[2], e = must(epoll_create1(0));
	struct epoll_event ev = { .events = EPOLLIN };
	must(pipe(p));
	must(epoll_ctl(e, EPOLL_CTL_ADD, p[0], &ev));
	must(eventfd(1, 0));
	must(timerfd_create(CLOCK_MONOTONIC, 0));
	must(memfd_create("own", MFD_ALLOW_SEALING));
	must(socket(AF_NETLINK, SOCK_RAW, 0));
	must(socket(AF_INET, SOCK_DGRAM, 0));
	must(socket(AF_INET6, SOCK_STREAM, 0));
	must(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
	must(socket(AF_PACKET, SOCK_RAW, 0));
	must(open("/dev/null", O_RDWR));
	must(open("/dev/urandom", O_RDONLY));
	must(open("/", O_PATH));
	must(open("/tmp", O_TMPFILE | O_RDWR, 0600));
	must(mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0);
	if (!child())
		for (;;)
			pause();
	int pid = must(fork());
	siginfo_t si;
	if (!pid)
		_exit(3);
	must(waitid(P_PID, pid, &si, WEXITED | WNOWAIT)); // stays a zombie
}
static void stuck(void) // a vfork whose child waits
{
	char path[64], buf[512] = "";
	snprintf(path, sizeof path, "/proc/%d/stat", getpid());
	if (vfork() == 0) {
		char c;
		while (!strstr(buf, ") D")) { // until the parent sleeps
			int fd = open(path, O_RDONLY);
			buf[read(fd, buf, sizeof buf - 1)] = 0;
			close(fd);
		}
		(void)!write(1, "ready\n", 6);
		while (read(0, &c, 1) > 0)
			;
		_exit(0);
	}
	_exit(0);
}
static void pty_inside(void)
{
	int m = must(posix_openpt(O_RDWR | O_NOCTTY)), s;
	must(grantpt(m));
	must(unlockpt(m));
	s = must(open(ptsname(m), O_RDWR | O_NOCTTY));
	(void)s;
}
static void pty_file(void) { must(open(args[2], O_RDWR | O_NOCTTY)); }
static void tcp_pair(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof a;
	int l = must(socket(AF_INET, SOCK_STREAM, 0)), c = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(l, (void *)&a, sizeof a));
	must(listen(l, 1));
	must(getsockname(l, (void *)&a, &n));
	must(connect(c, (void *)&a, sizeof a));
	must(accept(l, 0, 0));
}
static void tcp_backlog(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t n = sizeof a;
	int l = must(socket(AF_INET, SOCK_STREAM, 0));
	must(bind(l, (void *)&a, sizeof a));
	must(listen(l, 5));
	must(getsockname(l, (void *)&a, &n));
	for (int i = 0; i < 2; i++) { // they stay in the queue when their other end is closed
		int c = must(socket(AF_INET, SOCK_STREAM, 0));
		must(connect(c, (void *)&a, sizeof a));
		must(close(c));
	}
}
static void tcp_connect(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(atoi(args[2])) };
	must(connect(must(socket(AF_INET, SOCK_STREAM, 0)), (void *)&a, sizeof a));
}
static void session_child(void)
{
	int p[2], pid;
	char c;
	must(pipe(p)); // it leads its session already
	if (!must(fork())) { // becomes an orphan of this session
		pid = must(fork());
		if (pid)
			_exit(0);
		prctl(PR_SET_PDEATHSIG, 0);
		close(p[0]);
		must(write(p[1], "x", 1));
		close(p[1]);
		wait_end();
		_exit(0);
	}
	must(read(p[0], &c, 1));
	close(p[0]);
	close(p[1]);
	wait(0);
}

// Kills for every system call but those that it needs to wait.
static void seccomp_strict(void)
{
	static const unsigned ok[] = { SYS_read, SYS_write, SYS_exit_group, SYS_restart_syscall, SYS_newfstatat, SYS_fstat };
	struct sock_filter f[32];
	int n = 0, k = sizeof ok / sizeof ok[0];
	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0);
	for (int i = 0; i < k; i++)
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ok[i], k - i, 0);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog p = { n, f };
	printf("ready\n");
	fflush(stdout);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));
	char c;
	while (read(0, &c, 1) > 0)
		if (write(1, "alive\n", 6) < 0)
			break;
	_exit(0);
}
// Root without a single capability.
static void no_caps(void)
{
	uint32_t h[2] = { 0x20080522, 0 }, d[6] = { 0 };
	must(syscall(SYS_capset, h, d));
}
// Does all kinds of interruptible things and checks each result; only epoll_wait may say EINTR. Says what went wrong.
static volatile int ticks;
static void tick(int s) { ticks++; }
static void wrong(const char *what, long r)
{
	printf("wrong: %s %ld %s\n", what, r, strerror(errno));
	fflush(stdout);
	_exit(1);
}
static void busy(void)
{
	int e = epoll_create1(0), p[2];
	struct epoll_event ev;
	struct timespec ms = { 0, 300000 }, a, b;
	struct pollfd none = { -1, 0, 0 };
	struct itimerval it = { { 0, 700 }, { 0, 700 } };
	sigset_t block, old, now, before;
	unsigned long n = 0;
	must(pipe(p));
	signal(SIGALRM, tick);
	sigemptyset(&block);
	sigaddset(&block, SIGUSR1);
	sigprocmask(SIG_BLOCK, &block, NULL);
	sigprocmask(SIG_BLOCK, NULL, &before);
	printf("ready\n");
	fflush(stdout);
	fcntl(0, F_SETFL, O_NONBLOCK);
	for (char c; read(0, &c, 1) != 0; n++) {
		// registers and flags in a tight loop
		unsigned long x = n * 2654435761u + 1, y = x, z = 0;
		for (int i = 0; i < 20000; i++) {
			x = x * 6364136223846793005ul + 1442695040888963407ul;
			z ^= x >> 7;
		}
		for (int i = 0; i < 20000; i++) {
			y = y * 6364136223846793005ul + 1442695040888963407ul;
			z ^= y >> 7;
		}
		if (x != y || z != 0)
			wrong("arithmetic", n);
		clock_gettime(CLOCK_MONOTONIC, &a);
		if (nanosleep(&ms, NULL) != 0)
			wrong("nanosleep", 0);
		clock_gettime(CLOCK_MONOTONIC, &b);
		if ((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec < ms.tv_nsec)
			wrong("nanosleep was short", 0);
		if (poll(&none, 1, 1) != 0)
			wrong("poll", 0);
		if (ppoll(&none, 1, &ms, &block) != 0)
			wrong("ppoll", 0);
		if (epoll_wait(e, &ev, 1, 1) != 0 && errno != EINTR)
			wrong("epoll_wait", 0);
		if (getpid() != syscall(SYS_getpid))
			wrong("getpid", 0);
		if (write(p[1], &n, sizeof n) != sizeof n || read(p[0], &x, sizeof x) != sizeof x || x != n)
			wrong("pipe", 0);
		// a blocked read that a child ends
		if (n % 8 == 0) {
			int st, pid = vfork();
			if (pid == 0)
				_exit(7);
			if (waitpid(pid, &st, 0) != pid || WEXITSTATUS(st) != 7)
				wrong("waitpid", st);
			setitimer(ITIMER_REAL, &it, NULL);
			sigemptyset(&old);
			int t = ticks;
			while (ticks == t)
				if (sigsuspend(&old) != -1 || errno != EINTR)
					wrong("sigsuspend", 0);
			struct itimerval off = { { 0, 0 }, { 0, 0 } };
			setitimer(ITIMER_REAL, &off, NULL);
		}
		sigprocmask(SIG_BLOCK, NULL, &now);
		if (memcmp(&now, &before, 8))
			wrong("signal mask", 0);
		errno = 0;
	}
	printf("rounds %lu\nready\n", n);
	fflush(stdout);
	_exit(0);
}

static const struct { const char *name; void (*f)(void); } modes[] = {
	{ "plain", plain }, { "io_uring", io_uring }, { "userfaultfd", userfaultfd_ }, { "perf", perf }, { "bpf_map", bpf_map },
	{ "landlock_ruleset", landlock_ruleset }, { "landlock", landlock }, { "mdwe", mdwe }, { "nnp", nnp }, { "mseal", mseal_ },
	{ "mptcp", mptcp }, { "vsock", vsock }, { "alg", alg }, { "icmp", icmp }, { "unix_connect", unix_connect }, { "unix_dgram", unix_dgram },
	{ "unix_inside", unix_inside }, { "sysv", sysv }, { "semaphores", semaphores }, { "queue", queue }, { "mqueue", mqueue },
	{ "deleted", deleted }, { "renamed", renamed }, { "writer", writer }, { "traced", traced }, { "deadline", deadline },
	{ "ns_child", ns_child }, { "ns_thread", ns_thread }, { "files_thread", files_thread }, { "fixups", fixups },
	{ "aio_ring", aio_ring }, { "aio_direct", aio_direct }, { "device", device }, { "secretmem", secretmem },
	{ "shared_pipe", shared_pipe }, { "shared_eventfd", shared_eventfd }, { "shared_epoll", shared_epoll },
	{ "shared_memory", shared_memory }, { "shared_memfd", shared_memfd }, { "shared_unix", shared_unix },
	{ "shared_listener", shared_listener }, { "pidfd_outside", pidfd_outside }, { "pidfd_inside", pidfd_inside }, { "netns_fd", netns_fd },
	{ "mount_outside", mount_outside }, { "mount_own", mount_own },
	{ "kept", kept }, { "stuck", stuck }, { "pty_inside", pty_inside }, { "pty_file", pty_file }, { "tcp_pair", tcp_pair },
	{ "tcp_backlog", tcp_backlog },
	{ "tcp_connect", tcp_connect }, { "session_child", session_child }, { "seccomp_strict", seccomp_strict }, { "no_caps", no_caps }, { "busy", busy },
};

int main(int argc, char **argv)
{
	args = argv; // no PDEATHSIG: it would come when the thread of the test ends that forked
	for (unsigned i = 0; argc > 1 && i < sizeof modes / sizeof modes[0]; i++)
		if (!strcmp(argv[1], modes[i].name)) {
			modes[i].f();
			ready();
		}
	fprintf(stderr, "no such mode\n");
	return 2;
}
