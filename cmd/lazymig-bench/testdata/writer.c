// writer PATTERN SIZE_MB READY RESULT: memory that is written while it moves, with a watch on itself.
//
// The watch is that of workload.c. Writers go through pages as PATTERN says: idle (nobody writes), seq (one after the other, 25 pages each
// millisecond), uniform (at random, 10 each millisecond), zipf (25, some of them far more often than others: exponent 0.99), storm (four
// threads at random, without rest). If mincore says that a page is not there a writer notes how long it waited for it. On SIGTERM words of
// every page are checked and RESULT is written as workload.c does.
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
static const char *pattern;
static double zeta, eta, alpha, half; // Gray et al., "Quickly generating billion-record synthetic databases"
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

static void zipf_begin(void) {
  const double theta = 0.99;
  for (size_t i = 1; i <= pages; i++) zeta += 1 / pow(i, theta);
  half = 1 + pow(0.5, theta);
  alpha = 1 / (1 - theta);
  eta = (1 - pow(2.0 / pages, 1 - theta)) / (1 - half / zeta);
}

static size_t zipf(uint64_t *r) {
  double u = (next(r) & 0xffffffff) / 4294967296.0, uz = u * zeta;
  size_t rank = uz < 1 ? 0 : uz < half ? 1 : (size_t)(pages * pow(eta * u - eta + 1, alpha));
  return (rank + 1) * 0x9e3779b97f4a7c15ull % pages; // neighbours in rank are none in memory
}

// write writes the first word: the page's number, and something that changes.
static void write_page(size_t i, uint32_t n) {
  unsigned char there = 1;
  int waits = !mincore((void *)&mem[i * WORDS], 4096, &there) && !(there & 1);
  int64_t a = waits ? ns(CLOCK_MONOTONIC) : 0;
  uint64_t got = mem[i * WORDS + 1 + i % (WORDS - 1)];
  mem[i * WORDS] = (uint64_t)(uint32_t)i << 32 | n;
  if (waits) {
    int64_t took = ns(CLOCK_MONOTONIC) - a;
    size_t k = __atomic_fetch_add(&nfaults, 1, __ATOMIC_RELAXED);
    if (k < FAULTS) faults[k] = took > 4000000000ll ? 4000000000u : (uint32_t)took;
  }
  if (got != word(i, 1 + i % (WORDS - 1))) wrong++;
}

static void *writer(void *arg) {
  uint64_t r = 12345 + (uintptr_t)arg * 977;
  int storm = !strcmp(pattern, "storm"), seq = !strcmp(pattern, "seq"), zip = !strcmp(pattern, "zipf");
  int each = seq || zip ? 25 : 10;
  prctl(PR_SET_TIMERSLACK, 1);
  for (uint32_t n = 0; !stop; n++) {
    write_page(seq ? n % pages : zip ? zipf(&r) : next(&r) % pages, n);
    if (storm || n % each) continue;
    struct timespec pause = {0, 1000000};
    nanosleep(&pause, 0);
  }
  return 0;
}

static void on_term(int s) { stop = 1; }

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  pattern = argv[1];
  pages = strtoull(argv[2], 0, 10) << 8;
  mem = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mem == MAP_FAILED) return 4;
  for (size_t i = 0; i < pages; i++) {
    for (int j = 1; j < WORDS; j++) mem[i * WORDS + j] = word(i, j);
    mem[i * WORDS] = (uint64_t)(uint32_t)i << 32;
  }
  if (!strcmp(pattern, "zipf")) zipf_begin();
  signal(SIGTERM, on_term);
  pthread_t t[4];
  int threads = !strcmp(pattern, "idle") ? 0 : !strcmp(pattern, "storm") ? 4 : 1;
  for (long i = 0; i < threads; i++)
    if (pthread_create(&t[i], 0, writer, (void *)i)) return 4;
  prctl(PR_SET_TIMERSLACK, 1);
  int ready = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (ready < 0 || write(ready, "ready\n", 6) != 6 || close(ready)) return 4;
  int64_t last = ns(CLOCK_REALTIME);
  while (!stop) {
    struct timespec pause = {0, 200000};
    nanosleep(&pause, 0);
    int64_t n = ns(CLOCK_REALTIME);
    if (n - last > 1000000 && ngaps < GAPS) gaps[ngaps][0] = n / 1000, gaps[ngaps][1] = (n - last) / 1000, ngaps++;
    last = n;
  }
  for (int i = 0; i < threads; i++) pthread_join(t[i], 0);
  for (size_t i = 0; i < pages; i++) {
    if (mem[i * WORDS] >> 32 != (uint32_t)i) wrong++;
    for (int j = 1 + i % 61; j < WORDS; j += 61)
      if (mem[i * WORDS + j] != word(i, j)) wrong++;
  }
  FILE *f = fopen(argv[4], "w");
  if (!f) return 5;
  for (size_t i = 0; i < ngaps; i++) fprintf(f, "gap %ld %ld\n", (long)gaps[i][0], (long)gaps[i][1]);
  for (size_t i = 0; i < nfaults && i < FAULTS; i++) fprintf(f, "fault %u\n", faults[i]);
  fprintf(f, "%s\n", wrong ? "bad" : "ok");
  return fclose(f) ? 5 : wrong != 0;
}
