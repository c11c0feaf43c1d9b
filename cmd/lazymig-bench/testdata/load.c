// load KIND SIZE_MB RESERVE_GB READY RESULT: what a program does with its memory while it is moved, and what it notices.
//
// Threads touch pages in the way that KIND says. Before each touch mincore tells whether the page is there; if not, how long the touch took is a
// fault, and stall. Operations are counted in slots of 10 ms. One more thread sleeps 200 µs again and again and notes each gap of more than 1 ms.
// Clocks are CLOCK_REALTIME, which goes on over a move. On SIGTERM all pages are checked and RESULT is written: "gap END_US LENGTH_US", "fault BIN
// COUNT" (a logarithmic scale, bin() below), "stall NS", "rate SLOT OPERATIONS", and last "ok" or "bad".
//
// With RESERVE_GB the memory is the first part of a reservation of that size. A page's first word is its version, of which there is a second record
// elsewhere: a page that has an old version has lost a write.
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

enum { WORDS = 512, GAPS = 1 << 14, BINS = 1024, SLOTS = 1 << 15, SLOT_NS = 10000000, THREADS = 4 };
enum order { NONE, WALK, UNIFORM, ZIPF };

static const struct kind {
  const char *name;
  enum order order;
  int threads, writes;
  int work;   // steps of computing for a touch: some 2 µs for 1,500
  int gap_us; // between touches
  int half;   // of each page can be compressed away
} kinds[] = {
    {"idle", NONE, 0, 0, 0, 0, 0},       {"sequential", WALK, 1, 0, 1500, 0, 0}, {"uniform", UNIFORM, 1, 0, 1500, 0, 0},
    {"zipf", ZIPF, 1, 0, 1500, 0, 0},    {"writes", UNIFORM, 2, 1, 300, 0, 0},   {"storm", UNIFORM, 4, 0, 0, 0, 0},
    {"paced", UNIFORM, 1, 0, 0, 500, 0}, {"half", UNIFORM, 1, 0, 0, 500, 1},
};

static const struct kind *k;
static volatile uint64_t *mem;
static uint32_t *version;
static size_t pages;
static double zetan, eta;
static int64_t began;
static volatile sig_atomic_t stop;
static volatile long wrong;
static int64_t gaps[GAPS][2];
static size_t ngaps;
static struct side {
  uint64_t stall, bins[BINS];
  uint32_t slots[SLOTS];
} sides[THREADS];

static uint64_t word(uint64_t page, uint64_t j) {
  if (k->half && j >= WORDS / 2) return 0x0101010101010101ull;
  uint64_t x = (page * WORDS + j + 1) * 0x9e3779b97f4a7c15ull;
  return (x ^ x >> 29) | 1; // never zero
}

static int64_t ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int bin(uint64_t v) { // 16 to each power of two
  if (v < 16) return v;
  int e = 63 - __builtin_clzll(v);
  return (e - 3) * 16 + (v >> (e - 4) & 15);
}

static double theta = 0.99;

// The method of YCSB (Gray et al., 1994): ranks by their probability, spread over the pages.
static size_t zipf(double u) {
  double uz = u * zetan;
  size_t rank = uz < 1 ? 0 : uz < 1 + pow(0.5, theta) ? 1 : (size_t)(pages * pow(eta * u - eta + 1, 1 / (1 - theta)));
  return (rank < pages ? rank : pages - 1) * 2654435761ull % pages;
}

static void *toucher(void *arg) {
  struct side *s = arg;
  size_t me = s - sides, at = me;
  uint64_t r = 12345 + me, x = 1;
  prctl(PR_SET_TIMERSLACK, 1);
  while (!stop) {
    if (k->gap_us) nanosleep(&(struct timespec){0, k->gap_us * 1000}, 0);
    r = r * 6364136223846793005ull + 1442695040888963407ull;
    size_t i;
    switch (k->order) {
    case WALK: i = at = (at + 1) % pages; break;
    case ZIPF: i = zipf((r >> 11) * 0x1p-53); break;
    default: i = (r >> 20) % pages;
    }
    if (k->writes) i = i / k->threads * k->threads + me; // each has its own pages
    if (i >= pages) continue;
    unsigned char there = 1;
    mincore((void *)&mem[i * WORDS], 4096, &there);
    int64_t a = ns();
    if (k->writes)
      mem[i * WORDS] = ++version[i];
    else if (mem[i * WORDS + 1 + i % 255] != word(i, 1 + i % 255))
      wrong++;
    int64_t b = ns();
    if (!(there & 1)) s->stall += b - a, s->bins[bin(b - a)]++;
    for (int n = k->work; n > 0; n--) x = x * 6364136223846793005ull + 1;
    __asm__ volatile("" : : "r"(x));
    size_t slot = (b - began) / SLOT_NS;
    if (slot < SLOTS) s->slots[slot]++;
  }
  return 0;
}

static void on_term(int s) { stop = 1; }

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
    if (!strcmp(kinds[i].name, argv[1])) k = &kinds[i];
  if (!k) return 2;
  pages = strtoull(argv[2], 0, 10) << 8;
  size_t reserve = strtoull(argv[3], 0, 10) << 30;
  mem = mmap(0, reserve ? reserve : pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (reserve ? MAP_NORESERVE : 0), -1, 0);
  version = calloc(pages, sizeof *version);
  if (mem == MAP_FAILED || !version) return 4;
  memset(version, 0, pages * sizeof *version);
  for (size_t i = 0; i < pages; i++) {
    mem[i * WORDS] = 0;
    for (int j = 1; j < WORDS; j++) mem[i * WORDS + j] = word(i, j);
  }
  if (k->order == ZIPF) {
    for (size_t i = 1; i <= pages; i++) zetan += 1 / pow(i, theta);
    eta = (1 - pow(2.0 / pages, 1 - theta)) / (1 - (1 + pow(0.5, theta)) / zetan);
  }
  signal(SIGTERM, on_term);
  began = ns() / SLOT_NS * SLOT_NS;
  pthread_t t[THREADS];
  for (int i = 0; i < k->threads; i++)
    if (pthread_create(&t[i], 0, toucher, &sides[i])) return 4;
  prctl(PR_SET_TIMERSLACK, 1);
  int ready = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (ready < 0 || write(ready, "ready\n", 6) != 6 || close(ready)) return 4;
  int64_t last = ns();
  while (!stop) {
    nanosleep(&(struct timespec){0, 200000}, 0);
    int64_t n = ns();
    if (n - last > 1000000 && ngaps < GAPS) gaps[ngaps][0] = n / 1000, gaps[ngaps][1] = (n - last) / 1000, ngaps++;
    last = n;
  }
  for (int i = 0; i < k->threads; i++) pthread_join(t[i], 0);
  for (size_t i = 0; i < pages; i++) {
    if (mem[i * WORDS] != version[i]) wrong++;
    for (int j = 1 + i % 61; j < WORDS; j += 61)
      if (mem[i * WORDS + j] != word(i, j)) wrong++;
  }
  FILE *f = fopen(argv[5], "w");
  if (!f) return 5;
  for (size_t i = 0; i < ngaps; i++) fprintf(f, "gap %ld %ld\n", (long)gaps[i][0], (long)gaps[i][1]);
  uint64_t stall = 0;
  for (int b = 0; b < BINS; b++) {
    uint64_t n = 0;
    for (int i = 0; i < THREADS; i++) n += sides[i].bins[b];
    if (n) fprintf(f, "fault %d %lu\n", b, (unsigned long)n);
  }
  for (int i = 0; i < THREADS; i++) stall += sides[i].stall;
  fprintf(f, "stall %lu\n", (unsigned long)stall);
  for (size_t i = 0; i < SLOTS; i++) {
    uint64_t n = 0;
    for (int j = 0; j < THREADS; j++) n += sides[j].slots[i];
    if (n) fprintf(f, "rate %ld %lu\n", (long)(began / SLOT_NS + i), (unsigned long)n);
  }
  fprintf(f, "%s\n", wrong ? "bad" : "ok");
  return fclose(f) ? 5 : wrong != 0;
}
