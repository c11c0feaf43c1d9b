// The restored process of the tests: it registers its own memory with a userfaultfd, hands that over on fd 3, waits for a
// byte, runs a workload and checks every page against what the source had (or what it did itself). Exit 0: all right.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/userfaultfd.h>

#define PG 4096ul
#define die(...) do { fprintf(stderr, __VA_ARGS__); fprintf(stderr, " (line %d, pid %d)\n", __LINE__, getpid()); _exit(1); } while (0)

static uint64_t mix(uint64_t x) {
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}
static int src_zero(uint64_t a) { return mix(a >> 12) % 5 == 0; }
static uint64_t src_word(uint64_t a) { return src_zero(a) ? 0 : mix(a); }

// what a page holds: the source's bytes of an address, zeros, or words of our own
enum { SRC = 1, ZERO, OWN };
struct st { uint8_t kind; uint64_t v; };
static uint64_t want_word(struct st s, unsigned i) {
	return s.kind == SRC ? src_word(s.v + 8 * i) : s.kind == ZERO ? 0 : mix(s.v + i);
}
static void check(char *p, struct st s, const char *what) {
	for (unsigned i = 0; i < 512; i++) {
		uint64_t g = ((volatile uint64_t *)p)[i];
		if (g != want_word(s, i))
			die("%s: page %p word %u is %lx, not %lx (kind %d of %lx)", what, p, i, g, want_word(s, i), s.kind, s.v);
	}
}
static void fill(char *p, struct st s) { for (unsigned i = 0; i < 512; i++) ((volatile uint64_t *)p)[i] = want_word(s, i); }
static struct st src(char *p) { return (struct st){SRC, (uint64_t)p}; }
static const struct st zero = {ZERO, 0};

static char *mem; static size_t pages; static int sock = 3;

static void *map(size_t n) {
	void *p = mmap(0, n * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) die("mmap: %s", strerror(errno));
	return p;
}
static void go(void) { char b; if (recv(sock, &b, 1, 0) != 1) die("no go"); }
static void say(const char *s) { if (send(sock, s, strlen(s), 0) < 0) die("send: %s", strerror(errno)); }

static void setup(size_t n) {
	pages = n;
	mem = map(n + 2); // a page without access on both sides: nothing merges with it
	mprotect(mem, PG, PROT_NONE); mprotect(mem + (n + 1) * PG, PG, PROT_NONE);
	mem += PG;
	int u = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (u < 0) die("userfaultfd: %s", strerror(errno));
	struct uffdio_api a = {UFFD_API, UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP, 0};
	if (ioctl(u, UFFDIO_API, &a)) die("UFFDIO_API: %s", strerror(errno));
	struct uffdio_register r = {{(uint64_t)mem, n * PG}, UFFDIO_REGISTER_MODE_MISSING, 0};
	if (ioctl(u, UFFDIO_REGISTER, &r)) die("UFFDIO_REGISTER: %s", strerror(errno));
	uint64_t m[2] = {(uint64_t)mem, (uint64_t)mem + n * PG};
	struct iovec v = {m, sizeof m};
	char c[CMSG_SPACE(4)] = {0};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
	struct cmsghdr *q = CMSG_FIRSTHDR(&h);
	q->cmsg_level = SOL_SOCKET; q->cmsg_type = SCM_RIGHTS; q->cmsg_len = CMSG_LEN(4);
	memcpy(CMSG_DATA(q), &u, 4);
	if (sendmsg(sock, &h, 0) < 0) die("sendmsg: %s", strerror(errno));
	close(u);
	go();
}

static void reap(pid_t p) {
	int s;
	while (waitpid(p, &s, 0) < 0) if (errno != EINTR) die("waitpid: %s", strerror(errno));
	if (s) die("child ended with %x", s);
}
static pid_t fork_(void) {
	pid_t p = fork();
	if (p < 0) die("fork: %s", strerror(errno));
	if (!p) prctl(PR_SET_PDEATHSIG, SIGKILL);
	return p;
}
static void check_all(const char *what) { for (size_t i = 0; i < pages; i++) check(mem + i * PG, src(mem + i * PG), what); }

static uint64_t rnd(uint64_t *s) { return *s = mix(*s); }

// every page by eight threads in an order of their own
static void *toucher(void *a) {
	uint64_t s = (uint64_t)a;
	for (size_t i = 0; i < pages * 2; i++) { size_t k = rnd(&s) % pages; check(mem + k * PG, src(mem + k * PG), "touch"); }
	return 0;
}
static void w_touch(void) {
	setup(2048);
	pthread_t t[8];
	for (long i = 0; i < 8; i++) pthread_create(t + i, 0, toucher, (void *)(i + 1));
	for (int i = 0; i < 8; i++) pthread_join(t[i], 0);
	check_all("touch all");
}
// nothing is touched until the drain is over: the test says go again then
static void w_idle(void) { setup(4096); say("idle"); go(); check_all("idle"); }
// the test says which page is touched next, and is told whether it was there; a page beyond the end ends it
static void w_steps(void) {
	setup(32768);
	for (;;) {
		uint64_t k; unsigned char there;
		if (recv(sock, &k, sizeof k, 0) != sizeof k) die("no step");
		if (k >= pages) return;
		if (mincore(mem + k * PG, PG, &there)) die("mincore: %s", strerror(errno));
		check(mem + k * PG, src(mem + k * PG), "step");
		say(there & 1 ? "there" : "missing");
	}
}
// forks while pages are missing: child and grandchild see the source's bytes
static void w_fork(void) {
	setup(1024);
	for (size_t i = 0; i < pages; i += 7) check(mem + i * PG, src(mem + i * PG), "before fork");
	fill(mem + PG, (struct st){OWN, 5});
	for (int round = 0; round < 4; round++) {
		pid_t p = fork_();
		if (!p) {
			pid_t q = fork_();
			check(mem + PG, (struct st){OWN, 5}, "child own");
			for (size_t i = 2; i < pages; i++) check(mem + i * PG, src(mem + i * PG), q ? "child" : "grandchild");
			fill(mem + 3 * PG, (struct st){OWN, 9});
			if (q) reap(q);
			_exit(0);
		}
		check(mem + (3 + round) * PG, src(mem + (3 + round) * PG), "parent");
		if (round & 1) reap(p); else { reap(p); }
	}
	for (size_t i = 2; i < pages; i++) check(mem + i * PG, src(mem + i * PG), "parent after");
}
// areas that a child gets as zeros, or not at all
static void w_wipe(void) {
	setup(512);
	if (madvise(mem, 64 * PG, MADV_WIPEONFORK)) die("WIPEONFORK: %s", strerror(errno));
	if (madvise(mem + 128 * PG, 64 * PG, MADV_DONTFORK)) die("DONTFORK: %s", strerror(errno));
	check(mem, src(mem), "parent");
	pid_t p = fork_();
	if (!p) {
		for (int i = 0; i < 64; i++) check(mem + i * PG, zero, "wiped");
		for (int i = 64; i < 128; i++) check(mem + i * PG, src(mem + i * PG), "kept");
		for (size_t i = 192; i < pages; i++) check(mem + i * PG, src(mem + i * PG), "kept");
		say("child"); 
		char b; recv(sock, &b, 1, 0);
		_exit(0);
	}
	reap(p);
	check_all("parent after");
}
// mremap in all its forms
static void w_remap(void) {
	setup(1024);
	char *m = mem;
	check(m + 3 * PG, src(m + 3 * PG), "before");
	char *to = map(200);
	char *q = mremap(m, 100 * PG, 100 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, to); // moved onto plain memory
	if (q != to) die("mremap: %s", strerror(errno));
	for (int i = 0; i < 100; i += 2) check(q + i * PG, src(m + i * PG), "moved");
	char *g = mremap(q, 100 * PG, 300 * PG, MREMAP_MAYMOVE); // grown
	if (g == MAP_FAILED) die("mremap: %s", strerror(errno));
	for (int i = 0; i < 100; i++) check(g + i * PG, src(m + i * PG), "grown");
	for (int i = 100; i < 300; i++) check(g + i * PG, zero, "grown part");
	char *d = mremap(m + 200 * PG, 100 * PG, 100 * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	if (d == MAP_FAILED) die("mremap: %s", strerror(errno));
	for (int i = 0; i < 100; i++) check(m + (200 + i) * PG, zero, "left behind");
	for (int i = 0; i < 100; i++) check(d + i * PG, src(m + (200 + i) * PG), "taken along");
	q = mremap(m + 400 * PG, 50 * PG, 50 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, m + 500 * PG); // onto missing pages
	if (q == MAP_FAILED) die("mremap: %s", strerror(errno));
	q = mremap(m + 450 * PG, 50 * PG, 50 * PG, MREMAP_MAYMOVE | MREMAP_FIXED, m + 400 * PG); // into the hole
	if (q == MAP_FAILED) die("mremap: %s", strerror(errno));
	for (int i = 0; i < 50; i++) check(m + (500 + i) * PG, src(m + (400 + i) * PG), "over");
	for (int i = 0; i < 50; i++) check(m + (400 + i) * PG, src(m + (450 + i) * PG), "hole");
	for (size_t i = 550; i < pages; i++) check(m + i * PG, src(m + i * PG), "rest");
}
// unmapped, mapped again, thrown away, thrown away again after a write
static void w_drop(void) {
	setup(1024);
	if (munmap(mem + 10 * PG, 20 * PG)) die("munmap");
	if (mmap(mem + 10 * PG, 20 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) die("mmap");
	if (mmap(mem + 40 * PG, 20 * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) die("mmap");
	if (madvise(mem + 100 * PG, 100 * PG, MADV_DONTNEED)) die("madvise");
	check(mem + 300 * PG, src(mem + 300 * PG), "before");
	if (madvise(mem + 300 * PG, 50 * PG, MADV_DONTNEED)) die("madvise");
	fill(mem + 400 * PG, (struct st){OWN, 1});
	if (madvise(mem + 400 * PG, PG, MADV_DONTNEED)) die("madvise");
	for (size_t i = 0; i < pages; i++) {
		int gone = (i >= 10 && i < 30) || (i >= 40 && i < 60) || (i >= 100 && i < 200) || (i >= 300 && i < 350) || i == 400;
		check(mem + i * PG, gone ? zero : src(mem + i * PG), gone ? "gone" : "kept");
	}
}
// VMAs are split and joined, without an event, while pages come
static void *splitter(void *a) {
	uint64_t s = 77;
	(void)a;
	for (int i = 0; i < 3000; i++) {
		size_t k = rnd(&s) % (pages - 8), n = 1 + rnd(&s) % 8;
		if (mprotect(mem + k * PG, n * PG, PROT_READ)) die("mprotect");
		if (madvise(mem + k * PG, n * PG, MADV_DONTDUMP)) die("madvise");
		if (madvise(mem + k * PG, n * PG, MADV_DODUMP)) die("madvise");
		if (i % 3 && mprotect(mem + k * PG, n * PG, PROT_READ | PROT_WRITE)) die("mprotect");
	}
	return 0;
}
static void w_split(void) {
	setup(8192);
	pthread_t t;
	mprotect(mem + 4096 * PG, 512 * PG, PROT_NONE);
	pthread_create(&t, 0, splitter, 0);
	pthread_join(t, 0);
	say("split"); go();
	mprotect(mem, pages * PG, PROT_READ);
	check_all("split");
}
// a thread waits for a page that another one moves away: it has to fault again, and finds zeros
static char *moved_from;
static void *waiter(void *a) { (void)a; check(moved_from, zero, "waiter"); return 0; }
static void w_movewait(void) {
	setup(64);
	moved_from = mem + 8 * PG;
	pthread_t t;
	pthread_create(&t, 0, waiter, 0);
	go(); // the fault has been read
	char *d = mremap(mem, 32 * PG, 32 * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
	if (d == MAP_FAILED) die("mremap: %s", strerror(errno));
	pthread_join(t, 0);
	say("moved"); go();
	for (int i = 0; i < 32; i++) check(d + i * PG, src(mem + i * PG), "moved");
}

// churn: each thread owns areas and keeps account of every page; addresses go from one to the other by the kernel's choice
#define AREAS 48
struct area { char *p; size_t n; struct st *s; };
struct churn { uint64_t seed; int ops; int n; struct area a[AREAS]; };
static int churn_ops = 400;

static void put_area(struct churn *c, char *p, size_t n, struct st *s) {
	if (!n) { free(s); return; }
	if (c->n == AREAS) { // no place: give it back
		if (munmap(p, n * PG)) die("munmap");
		free(s);
		return;
	}
	c->a[c->n++] = (struct area){p, n, s};
}
static struct st *sub(struct st *s, size_t from, size_t n) {
	struct st *r = malloc((n ? n : 1) * sizeof *r);
	memcpy(r, s + from, n * sizeof *r);
	return r;
}
static void churn_step(struct churn *c) {
	if (!c->n) return;
	int k = rnd(&c->seed) % c->n;
	struct area a = c->a[k];
	size_t f = rnd(&c->seed) % a.n, n = 1 + rnd(&c->seed) % (a.n - f);
	if (n > 24) n = 1 + n % 24;
	switch (rnd(&c->seed) % 12) {
	case 0: case 1: case 2:
		for (size_t i = f; i < f + n; i++) check(a.p + i * PG, a.s[i], "churn read");
		break;
	case 3: case 4:
		a.s[f] = (struct st){OWN, rnd(&c->seed)};
		fill(a.p + f * PG, a.s[f]);
		break;
	case 5:
		if (madvise(a.p + f * PG, n * PG, MADV_DONTNEED)) die("DONTNEED: %s", strerror(errno));
		for (size_t i = f; i < f + n; i++) a.s[i] = zero;
		break;
	case 6: // unmap a part
		if (munmap(a.p + f * PG, n * PG)) die("munmap: %s", strerror(errno));
		c->a[k] = c->a[--c->n];
		put_area(c, a.p, f, sub(a.s, 0, f));
		put_area(c, a.p + (f + n) * PG, a.n - f - n, sub(a.s, f + n, a.n - f - n));
		free(a.s);
		break;
	case 7: case 8: { // move a part, half the time growing it, to where the kernel likes
		size_t g = rnd(&c->seed) % 2 ? 1 + rnd(&c->seed) % 8 : 0;
		char *to = MAP_FAILED;
		if (!g) { // reserve a place, so that it really moves: a free range of just that size
			char *r = mmap(0, n * PG, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (r == MAP_FAILED) die("mmap: %s", strerror(errno));
			to = mremap(a.p + f * PG, n * PG, n * PG, MREMAP_MAYMOVE | MREMAP_FIXED, r);
		} else
			to = mremap(a.p + f * PG, n * PG, (n + g) * PG, MREMAP_MAYMOVE);
		if (to == MAP_FAILED) die("mremap: %s", strerror(errno));
		c->a[k] = c->a[--c->n];
		struct st *m = malloc((n + g) * sizeof *m);
		memcpy(m, a.s + f, n * sizeof *m);
		for (size_t i = n; i < n + g; i++) m[i] = zero;
		put_area(c, a.p, f, sub(a.s, 0, f));
		put_area(c, a.p + (f + n) * PG, a.n - f - n, sub(a.s, f + n, a.n - f - n));
		put_area(c, to, n + g, m);
		free(a.s);
		break;
	}
	case 9: { // leave zeros behind
		char *to = mremap(a.p + f * PG, n * PG, n * PG, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
		if (to == MAP_FAILED) die("mremap: %s", strerror(errno));
		struct st *m = sub(a.s, f, n);
		for (size_t i = f; i < f + n; i++) a.s[i] = zero;
		put_area(c, to, n, m);
		break;
	}
	case 10:
		if (mprotect(a.p + f * PG, n * PG, PROT_READ)) die("mprotect: %s", strerror(errno));
		check(a.p + f * PG, a.s[f], "churn protected");
		if (mprotect(a.p + f * PG, n * PG, PROT_READ | PROT_WRITE)) die("mprotect: %s", strerror(errno));
		break;
	case 11: { // memory that nobody registered comes and goes
		char *p = map(n);
		fill(p, (struct st){OWN, 3});
		if (munmap(p, n * PG)) die("munmap");
		break;
	}
	}
}
static void churn_check(struct churn *c, const char *what) {
	for (int k = 0; k < c->n; k++)
		for (size_t i = 0; i < c->a[k].n; i++) check(c->a[k].p + i * PG, c->a[k].s[i], what);
}
static int churn_forks;
static void *churner(void *v) {
	struct churn *c = v;
	for (int i = 0; i < c->ops; i++) {
		churn_step(c);
		if (churn_forks && i % 100 == 50) {
			pid_t p = fork_();
			if (!p) { // the child has this thread's areas, and goes on with them
				for (int j = 0; j < 60; j++) churn_step(c);
				churn_check(c, "churn child");
				_exit(0);
			}
			reap(p);
		}
	}
	churn_check(c, "churn end");
	return 0;
}
static void churn(int threads, size_t each) {
	setup(threads * each);
	struct churn *c = calloc(threads, sizeof *c);
	pthread_t t[64];
	for (int i = 0; i < threads; i++) {
		c[i].seed = i + 1000; c[i].ops = churn_ops;
		char *p = mem + i * each * PG;
		for (int k = 0; k < 8; k++) {
			size_t n = each / 8;
			struct st *s = malloc(n * sizeof *s);
			for (size_t j = 0; j < n; j++) s[j] = src(p + (k * n + j) * PG);
			put_area(&c[i], p + k * n * PG, n, s);
		}
	}
	for (int i = 0; i < threads; i++) pthread_create(t + i, 0, churner, c + i);
	for (int i = 0; i < threads; i++) pthread_join(t[i], 0);
	say("churned"); go(); // when all is drained: once more
	for (int i = 0; i < threads; i++) churn_check(c + i, "churn after");
}

// guards made of pages that have come, and of pages that have not
static sigjmp_buf jump;
static void segv(int n) { (void)n; siglongjmp(jump, n); }
static int faults_with(char *p) { // the signal that a read gets, 0: none
	int n = sigsetjmp(jump, 1);
	if (!n) (void)*(volatile char *)p;
	return n;
}
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
static void w_guard(void) {
	signal(SIGSEGV, segv);
	setup(256);
	check(mem, src(mem), "before");
	for (int i = 200; i < 208; i++) check(mem + i * PG, src(mem + i * PG), "before");
	say("touched"); go(); // nothing is coming now
	if (madvise(mem, 4 * PG, MADV_GUARD_INSTALL)) die("GUARD_INSTALL: %s", strerror(errno));
	if (madvise(mem + 100 * PG, 50 * PG, MADV_GUARD_INSTALL)) die("GUARD_INSTALL: %s", strerror(errno));
	if (madvise(mem + 200 * PG, 8 * PG, MADV_GUARD_INSTALL)) die("GUARD_INSTALL: %s", strerror(errno));
	if (madvise(mem + 200 * PG, 8 * PG, MADV_GUARD_REMOVE)) die("GUARD_REMOVE: %s", strerror(errno));
	say("guarded"); go(); // when all is drained
	for (int i = 0; i < 4; i++) if (faults_with(mem + i * PG) != SIGSEGV) die("no guard at %d", i);
	for (int i = 100; i < 150; i++) if (faults_with(mem + i * PG) != SIGSEGV) die("no guard at %d", i);
	if (madvise(mem + 100 * PG, 50 * PG, MADV_GUARD_REMOVE)) die("GUARD_REMOVE: %s", strerror(errno));
	for (size_t i = 4; i < pages; i++) check(mem + i * PG, (i >= 100 && i < 150) || (i >= 200 && i < 208) ? zero : src(mem + i * PG), "around guards");
}
// the source has guards and poison: the test says where
static void w_poison(void) {
	signal(SIGBUS, segv);
	setup(64);
	for (int i = 0; i < 64; i++) {
		int s = faults_with(mem + i * PG), bad = i % 16 == 3 || i % 16 == 4;
		if (s != (bad ? SIGBUS : 0)) die("page %d: signal %d", i, s);
		if (!bad) check(mem + i * PG, src(mem + i * PG), "beside poison");
	}
}
// another program in the same process, and children without a mm of their own
static void w_exec(void) {
	setup(256);
	check(mem + PG, src(mem + PG), "before");
	pid_t p = vfork();
	if (!p) _exit(7);
	int s;
	waitpid(p, &s, 0);
	check(mem + 2 * PG, src(mem + 2 * PG), "after vfork");
	execl("/proc/self/exe", "work", "sleep", (char *)0);
	die("execl: %s", strerror(errno));
}
// ends while pages are missing; its child goes on
static void w_orphan(void) {
	setup(256);
	check(mem + PG, src(mem + PG), "before");
	pid_t p = fork();
	if (p) { say("forked"); go(); _exit(0); }
	if (recv(sock, &(char){0}, 1, 0) != 1) die("no go");
	check_all("orphan");
	say("checked");
	_exit(0);
}

// a large reservation with a page here and there
static void w_sparse(void) {
	size_t stride = 1 << 16;
	setup(1 << 26);
	for (size_t i = 0; i < pages; i += 8 * stride) {
		check(mem + (i + 5) * PG, src(mem + (i + 5) * PG), "island");
		check(mem + (i + 1000) * PG, zero, "sea");
	}
	say("touched"); go();
	for (size_t i = 0; i < pages; i += stride) {
		check(mem + (i + 5) * PG, src(mem + (i + 5) * PG), "island");
		check(mem + (i + 6) * PG, zero, "shore");
	}
}

// split while nothing has come, made alike again after pages have come to the parts: one mapping, which grows as a whole
static void w_merge(void) {
	setup(64); say("ready"); go();
	if (mprotect(mem + 30 * PG, PG, PROT_READ)) die("mprotect: %s", strerror(errno));
	check(mem + 40 * PG, src(mem + 40 * PG), "end");
	check(mem + 5 * PG, src(mem + 5 * PG), "begin"); // they are not neighbours: neither takes the other's anon_vma
	check(mem + 30 * PG, src(mem + 30 * PG), "middle");
	if (mprotect(mem + 30 * PG, PG, PROT_READ | PROT_WRITE)) die("mprotect: %s", strerror(errno));
	char *to = mremap(mem, 64 * PG, 80 * PG, MREMAP_MAYMOVE);
	if (to == MAP_FAILED) die("mremap: %s", strerror(errno));
	for (size_t i = 0; i < 64; i++) check(to + i * PG, src(mem + i * PG), "moved");
	check(to + 70 * PG, zero, "grown");
}

int main(int argc, char **argv) {
	const char *w = argv[1];
	if (argc > 2) churn_ops = atoi(argv[2]);
	if (!strcmp(w, "touch")) w_touch();
	else if (!strcmp(w, "idle")) w_idle();
	else if (!strcmp(w, "steps")) w_steps();
	else if (!strcmp(w, "fork")) w_fork();
	else if (!strcmp(w, "wipe")) w_wipe();
	else if (!strcmp(w, "remap")) w_remap();
	else if (!strcmp(w, "drop")) w_drop();
	else if (!strcmp(w, "split")) w_split();
	else if (!strcmp(w, "merge")) w_merge();
	else if (!strcmp(w, "movewait")) w_movewait();
	else if (!strcmp(w, "guard")) w_guard();
	else if (!strcmp(w, "poison")) w_poison();
	else if (!strcmp(w, "sparse")) w_sparse();
	else if (!strcmp(w, "hold")) { setup(churn_ops); say("held"); go(); } // only for benchmarks
	else if (!strcmp(w, "exec")) w_exec();
	else if (!strcmp(w, "sleep")) { say("executed"); go(); }
	else if (!strcmp(w, "orphan")) w_orphan();
	else if (!strcmp(w, "churn1")) churn(1, 512);
	else if (!strcmp(w, "churn8")) churn(8, 512);
	else if (!strcmp(w, "churnfork")) { churn_forks = 1; churn(4, 512); }
	else die("no workload %s", w);
	return 0;
}
