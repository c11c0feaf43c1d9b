// watch.h stands before workload.c and writer.c in what is compiled: a page's words, a watch on oneself, and RESULT.
//
// The watch sleeps 200 µs again and again and notes each gap by CLOCK_REALTIME that is longer than 1 ms: the freeze is one of them. It sees what a
// user's program would see. No file is open meanwhile. RESULT is "gap END_US LENGTH_US", "fault NS", and last "ok" or "bad".
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512, GAPS = 1 << 14, FAULTS = 1 << 20 };
static volatile uint64_t *mem;
static size_t pages;
static volatile sig_atomic_t stop;
static volatile long wrong;
static int64_t gaps[GAPS][2];
static uint32_t faults[FAULTS];
static size_t ngaps, nfaults;

static uint64_t word(uint64_t page, uint64_t j) {
  uint64_t x = (page * WORDS + j + 1) * 0x9e3779b97f4a7c15ull;
  return (x ^ x >> 29) | 1; // never zero
}

static int64_t ns(clockid_t c) {
  struct timespec t;
  clock_gettime(c, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static uint64_t next(uint64_t *r) { return (*r = *r * 6364136223846793005ull + 1442695040888963407ull) >> 20; }

// waited notes how long a touch of a page took that was not there.
static void waited(int64_t took) {
  size_t i = __atomic_fetch_add(&nfaults, 1, __ATOMIC_RELAXED);
  if (i < FAULTS) faults[i] = took > 4000000000ll ? 4000000000u : (uint32_t)took;
}

static void on_term(int s) { stop = 1; }

// begin makes the memory, of SIZE_MB.
static int begin(const char *size) {
  pages = strtoull(size, 0, 10) << 8;
  mem = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mem == MAP_FAILED) return 4;
  for (size_t i = 0; i < pages; i++)
    for (int j = 0; j < WORDS; j++) mem[i * WORDS + j] = word(i, j);
  signal(SIGTERM, on_term);
  return 0;
}

// watch says READY, and watches until SIGTERM.
static int watch(const char *path) {
  prctl(PR_SET_TIMERSLACK, 1);
  int ready = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (ready < 0 || write(ready, "ready\n", 6) != 6 || close(ready)) return 4;
  int64_t last = ns(CLOCK_REALTIME);
  while (!stop) {
    struct timespec pause = {0, 200000};
    nanosleep(&pause, 0);
    int64_t n = ns(CLOCK_REALTIME);
    if (n - last > 1000000 && ngaps < GAPS) gaps[ngaps][0] = n / 1000, gaps[ngaps][1] = (n - last) / 1000, ngaps++;
    last = n;
  }
  return 0;
}

// result checks words of every page from the first on that nobody has written, and writes RESULT.
static int result(const char *path, int first) {
  for (size_t i = 0; i < pages; i++)
    for (int j = first + i % 61; j < WORDS; j += 61)
      if (mem[i * WORDS + j] != word(i, j)) wrong++;
  FILE *f = fopen(path, "w");
  if (!f) return 5;
  for (size_t i = 0; i < ngaps; i++) fprintf(f, "gap %ld %ld\n", (long)gaps[i][0], (long)gaps[i][1]);
  for (size_t i = 0; i < nfaults && i < FAULTS; i++) fprintf(f, "fault %u\n", faults[i]);
  fprintf(f, "%s\n", wrong ? "bad" : "ok");
  return fclose(f) ? 5 : wrong != 0;
}
