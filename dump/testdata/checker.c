// checker: a tree whose memory has a known pattern. Usage: checker SHARED MB THREADS CHILDREN
// SHARED is a file that the test reads: struct shared below.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>
#include <errno.h>
#include <time.h>

struct shared {
	volatile uint64_t ready, ticks, bad, events, conts, base, stopped, zombie, child, churn, churned, reserved, sparse;
};
static struct shared *sh;
static uint64_t *mem;
static size_t words;

static uint64_t pattern(uint64_t i) { return (i * 0x9E3779B97F4A7C15ull) ^ (i >> 7); }

static void tick(void) { __atomic_add_fetch(&sh->ticks, 1, __ATOMIC_RELAXED); }

static void nap(void) { struct timespec ts = {0, 200000}; nanosleep(&ts, NULL); }

static void *worker(void *arg) {
	uint64_t i = (uint64_t)(uintptr_t)arg;
	for (;;) {
		i = (i * 6364136223846793005ull + 1442695040888963407ull);
		uint64_t w = (i >> 11) % words;
		if (mem[w] != pattern(w)) __atomic_add_fetch(&sh->bad, 1, __ATOMIC_RELAXED);
		tick();
		nap();
	}
	return NULL;
}

static void on_cont(int s) { (void)s; __atomic_add_fetch(&sh->conts, 1, __ATOMIC_RELAXED); }

int main(int argc, char **argv) {
	if (argc < 5) return 2;
	size_t mb = atol(argv[2]);
	int threads = atoi(argv[3]), kids = atoi(argv[4]);
	close_range(3, ~0U, 0); // whatever the test was started with
	// Descriptors of this mount namespace, not of the one it was started from.
	for (int i = 0; i < 3; i++) {
		int null = open("/dev/null", O_RDWR);
		if (null < 0 || dup2(null, i) < 0) return 7;
		close(null);
	}
	int fd = open(argv[1], O_RDWR);
	if (fd < 0) return 3;
	sh = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (sh == MAP_FAILED) return 4;
	close(fd);
	signal(SIGCONT, on_cont);
	words = mb * (1 << 20) / 8;
	mem = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED) return 5;
	for (size_t i = 0; i < words; i++) mem[i] = pattern(i);
	sh->base = (uint64_t)(uintptr_t)mem;
	// Oddities: no access but contents, locked, wiped on fork, not dumped, named by the heap.
	char *odd = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(odd, 7, 1 << 20);
	mprotect(odd, 65536, PROT_NONE);
	mlock(odd + 65536, 65536);
	madvise(odd + 131072, 65536, MADV_WIPEONFORK);
	madvise(odd + 196608, 65536, MADV_DONTDUMP);
	// A reservation of address space, and one in which a single page far up is used.
	sh->reserved = (uint64_t)(uintptr_t)mmap(NULL, 1ul << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *sparse = mmap(NULL, 1ul << 38, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	sparse[1ul << 37] = 1;
	sh->sparse = (uint64_t)(uintptr_t)sparse;
	char *heap = sbrk(1 << 20);
	memset(heap, 9, 1 << 20);

	pid_t z = fork();
	if (z == 0) _exit(7);
	sh->zombie = z;
	siginfo_t si;
	waitid(P_PID, z, &si, WEXITED | WNOWAIT);
	pid_t st = fork();
	if (st == 0) { for (;;) pause(); }
	sh->stopped = st;
	kill(st, SIGSTOP);
	waitid(P_PID, st, &si, WSTOPPED);
	for (int i = 0; i < kids; i++) {
		pid_t c = fork();
		if (c == 0) worker((void *)(uintptr_t)(100 + i));
		sh->child = c;
	}
	for (int i = 0; i < threads; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, worker, (void *)(uintptr_t)(i + 1))) return 6;
	}
	sh->ready = 1;
	for (;;) {
		// An event of the stopped child must never be seen: the test does not cause any.
		memset(&si, 0, sizeof si);
		if (waitid(P_PID, st, &si, WSTOPPED | WCONTINUED | WEXITED | WNOHANG) == 0 && si.si_pid) sh->events++;
		if (sh->churn && !sh->churned) {
			void *p = mmap(NULL, 3 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			memset(p, 5, 3 << 20);
			sh->churned = (uint64_t)(uintptr_t)p;
		}
		tick();
		nap();
	}
}
