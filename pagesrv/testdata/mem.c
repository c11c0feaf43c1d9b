// Maps memory of every kind, tells where, and stops itself. Usage: mem [MEGABYTES of one more area of data].
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
struct uffdio_poison { struct uffdio_range range; __u64 mode; __s64 updated; };
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

#define PAGE 4096UL

static void die(const char *what) { perror(what); exit(1); }

static void fill(char *p, size_t len)
{
	for (size_t i = 0; i < len; i += 8) {
		uint64_t a = (uint64_t)(p + i);
		*(uint64_t *)(p + i) = a * 0x9E3779B97F4A7C15UL ^ 0x5bd1e995;
	}
}

static char *map(size_t pages, int flags)
{
	// A guard page on each side keeps areas apart, else the kernel merges the mappings.
	char *p = mmap(0, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) die("mmap");
	p = mmap(p + PAGE, pages * PAGE, PROT_READ | PROT_WRITE, MAP_FIXED | flags, -1, 0);
	if (p == MAP_FAILED) die("mmap");
	return p;
}

static void say(const char *name, char *p, size_t pages, const char *expect)
{
	printf("%s %lx %zu %s\n", name, (unsigned long)p, pages, expect);
}

int main(int argc, char **argv)
{
	const int anon = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p;

	p = map(200, anon);
	fill(p, 200 * PAGE);
	say("plain", p, 200, "data");

	p = map(100, anon);
	fill(p, 100 * PAGE);
	if (mprotect(p, 100 * PAGE, PROT_NONE)) die("mprotect");
	say("prot_none", p, 100, "data");

	p = map(64, anon);
	fill(p, 64 * PAGE);
	if (mprotect(p + 10 * PAGE, 5 * PAGE, PROT_NONE)) die("mprotect");
	if (mprotect(p + 20 * PAGE, 1 * PAGE, PROT_WRITE)) die("mprotect");
	if (mprotect(p + 63 * PAGE, 1 * PAGE, PROT_NONE)) die("mprotect");
	say("mixed_prot", p, 64, "data");

	p = map(130, anon);
	if (madvise(p, 130 * PAGE, MADV_NOHUGEPAGE)) die("nohugepage");
	for (int i = 0; i < 130; i += 3) fill(p + i * PAGE, PAGE);
	say("holes", p, 130, "third");

	p = map(70, anon);
	if (madvise(p, 70 * PAGE, MADV_NOHUGEPAGE)) die("nohugepage");
	for (int i = 0; i < 70; i += 3) fill(p + i * PAGE, PAGE);
	if (mprotect(p, 70 * PAGE, PROT_NONE)) die("mprotect");
	say("holes_prot_none", p, 70, "third");

	p = map(64, anon);
	volatile char sum = 0;
	for (int i = 0; i < 64; i++) sum += p[i * PAGE];
	say("read_only_touched", p, 64, "zero");

	p = map(64, anon);
	memset(p, 1, 64 * PAGE);
	memset(p, 0, 64 * PAGE);
	say("written_zero", p, 64, "zero");

	p = map(64, anon);
	say("untouched", p, 64, "zero");

	p = map(64, anon);
	memset(p, 0, 64 * PAGE);
	for (int i = 0; i < 64; i++) p[i * PAGE + PAGE - 1] = 7;
	say("last_byte", p, 64, "last7");

	p = map(64, anon);
	fill(p, 64 * PAGE);
	if (madvise(p, 64 * PAGE, MADV_GUARD_INSTALL) == 0) {
		say("guard", p, 64, "guard");
		p = map(30, anon);
		fill(p, 30 * PAGE);
		if (madvise(p + 7 * PAGE, 3 * PAGE, MADV_GUARD_INSTALL)) die("guard");
		say("guard_before", p, 7, "data");
		say("guard_middle", p + 7 * PAGE, 3, "guard");
		say("guard_after", p + 10 * PAGE, 20, "data");
		say("guard_all", p, 30, "any");
	}

	// 2 MB aligned: THP where the kernel likes.
	p = map(2048, anon);
	p = (char *)(((unsigned long)p + (2UL << 20) - 1) & ~((2UL << 20) - 1));
	madvise(p, 2UL << 20, MADV_HUGEPAGE);
	fill(p, 2UL << 20);
	madvise(p, 2UL << 20, 25 /* MADV_COLLAPSE */);
	say("thp", p, 512, "data");

	// Poison as userfaultfd leaves it behind.
	int u = syscall(SYS_userfaultfd, O_CLOEXEC | 1 /* UFFD_USER_MODE_ONLY */);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_POISON };
	if (u >= 0 && ioctl(u, UFFDIO_API, &api) == 0) {
		p = map(20, anon);
		struct uffdio_register reg = { .range = { (unsigned long)p, 20 * PAGE }, .mode = UFFDIO_REGISTER_MODE_MISSING };
		if (ioctl(u, UFFDIO_REGISTER, &reg)) die("register");
		struct uffdio_poison poison = { .range = { (unsigned long)p + 4 * PAGE, 2 * PAGE } };
		if (ioctl(u, UFFDIO_POISON, &poison)) die("poison");
		close(u);
		fill(p, 4 * PAGE);
		fill(p + 6 * PAGE, 14 * PAGE);
		say("poison_before", p, 4, "data");
		say("poison", p + 4 * PAGE, 2, "poison");
		say("poison_after", p + 6 * PAGE, 14, "data");
		say("poison_all", p, 20, "any");
	}

	p = map(32, MAP_SHARED | MAP_ANONYMOUS);
	fill(p, 32 * PAGE);
	madvise(p, 32 * PAGE, MADV_DONTNEED); // contents stay in the object, the page tables are empty
	say("shared", p, 32, "error");

	int fd = open("/proc/self/exe", O_RDONLY);
	p = mmap(0, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED) die("mmap file");
	say("file", p, 1, "error");

	p = map(8, anon);
	if (munmap(p, 8 * PAGE)) die("munmap");
	say("unmapped", p, 8, "error");

	if (argc > 1) {
		size_t pages = strtoul(argv[1], 0, 10) << 8;
		p = map(pages, anon);
		fill(p, pages * PAGE);
		say("big", p, pages, "data");
	}
	puts("end");
	fflush(stdout);
	raise(SIGSTOP);
	execv("/proc/self/exe", argv); // continued: all of it again in another address space
	die("execv");
}
