// workload SIZE_MB GAP_US READY RESULT: memory that is looked at while it moves, with a watch on itself.
//
// One thread sleeps 200 µs again and again and notes each gap by CLOCK_REALTIME that is longer than 1 ms: the freeze is one
// of them. Another touches a random page each GAP_US; if mincore says that the page is not there it notes how long the touch
// took. Both see what a user's program would see. No file is open meanwhile. On SIGTERM words of every page are checked and
// RESULT is written: "gap END_US LENGTH_US", "fault NS", and last "ok" or "bad".
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512, GAPS = 1 << 14, FAULTS = 1 << 20 };
static volatile uint64_t *mem;
static size_t pages;
static long gap_us;
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

static void *toucher(void *arg) {
  uint64_t r = 12345;
  prctl(PR_SET_TIMERSLACK, 1);
  while (!stop) {
    struct timespec pause = {0, gap_us * 1000};
    nanosleep(&pause, 0);
    r = r * 6364136223846793005ull + 1442695040888963407ull;
    size_t i = (r >> 20) % pages;
    unsigned char there = 1;
    if (mincore((void *)&mem[i * WORDS], 4096, &there) || (there & 1)) continue;
    int64_t a = ns(CLOCK_MONOTONIC);
    uint64_t got = mem[i * WORDS + i % WORDS];
    int64_t b = ns(CLOCK_MONOTONIC);
    if (got != word(i, i % WORDS)) wrong++;
    if (nfaults < FAULTS) faults[nfaults++] = b - a > 4000000000ll ? 4000000000u : (uint32_t)(b - a);
  }
  return 0;
}

static void on_term(int s) { stop = 1; }

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  pages = strtoull(argv[1], 0, 10) << 8;
  gap_us = atol(argv[2]);
  mem = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mem == MAP_FAILED) return 4;
  for (size_t i = 0; i < pages; i++)
    for (int j = 0; j < WORDS; j++) mem[i * WORDS + j] = word(i, j);
  signal(SIGTERM, on_term);
  pthread_t t;
  if (pthread_create(&t, 0, toucher, 0)) return 4;
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
  pthread_join(t, 0);
  for (size_t i = 0; i < pages; i++)
    for (int j = i % 61; j < WORDS; j += 61)
      if (mem[i * WORDS + j] != word(i, j)) wrong++;
  FILE *f = fopen(argv[4], "w");
  if (!f) return 5;
  for (size_t i = 0; i < ngaps; i++) fprintf(f, "gap %ld %ld\n", (long)gaps[i][0], (long)gaps[i][1]);
  for (size_t i = 0; i < nfaults; i++) fprintf(f, "fault %u\n", faults[i]);
  fprintf(f, "%s\n", wrong ? "bad" : "ok");
  return fclose(f) ? 5 : wrong != 0;
}
