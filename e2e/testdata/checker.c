// checker SIZE_MB THREADS STATUS [IP PORT]: holds memory whose every word it can check, and goes on checking and changing it.
//
// Page i of generation g holds word j = mix(i, g, j). Threads take random pages of their own share, check all words, and
// write every fourth one anew. STATUS is rewritten all the time: rounds, the longest pause by CLOCK_REALTIME in µs, when it
// ended, wrong pages. With IP and PORT each step (a millisecond's work) is told to a witness there by UDP, and the next is made when
// it has answered. On SIGTERM every page is checked once more; the last line says OK or BAD, and so does the exit code.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512 };
static uint64_t *mem;
static uint32_t *generation;
static size_t pages;
static int threads, status_fd;
static atomic_int stop;
static atomic_long rounds, wrong;

static uint64_t mix(uint64_t i, uint64_t g, uint64_t j) {
  uint64_t x = (i << 32 ^ g) + 0x9e3779b97f4a7c15ull * (j + 1);
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9ull, x ^= x >> 32;
  return x | 1; // never zero
}

static void fill(size_t i) {
  for (int j = 0; j < WORDS; j++) mem[i * WORDS + j] = mix(i, generation[i], j);
}

static int check(size_t i) {
  for (int j = 0; j < WORDS; j++)
    if (mem[i * WORDS + j] != mix(i, generation[i], j)) {
      atomic_fetch_add(&wrong, 1);
      return 0;
    }
  return 1;
}

static void *worker(void *arg) {
  size_t me = (size_t)arg, share = pages / threads;
  uint64_t r = me * 77 + 1;
  while (!stop) {
    r = r * 6364136223846793005ull + 1442695040888963407ull;
    size_t i = me * share + (r >> 20) % share;
    check(i);
    if (r >> 62 == 0) generation[i]++, fill(i);
    atomic_fetch_add(&rounds, 1);
  }
  return 0;
}

// steps counts, one word to the witness at a time; an answer that does not come is asked for again.
static void *steps(void *arg) {
  char **argv = arg;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[5]))};
  inet_pton(AF_INET, argv[4], &to.sin_addr);
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0) _exit(5);
  for (uint64_t step = 1; !stop; step++) {
    uint64_t word[2] = {step, atomic_load(&wrong)}, answer = 0;
    while (answer != step && !stop) {
      sendto(fd, word, sizeof word, 0, (void *)&to, sizeof to);
      struct pollfd p = {.fd = fd, .events = POLLIN};
      while (answer != step && poll(&p, 1, 100) > 0)
        if (recv(fd, &answer, sizeof answer, MSG_DONTWAIT) != sizeof answer) answer = 0; // what is queued does not move
    }
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, 0);
  }
  return 0;
}

static void on_term(int s) { stop = 1; }

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static void report(const char *word, int64_t pause, int64_t when) {
  char line[128];
  int n = snprintf(line, sizeof line, "%-4s %12ld %10ld %20ld %8ld\n", word, atomic_load(&rounds), (long)pause, (long)when, atomic_load(&wrong));
  if (pwrite(status_fd, line, n, 0) != n) _exit(3);
}

int main(int argc, char **argv) {
  pages = strtoull(argv[1], 0, 10) << 8;
  threads = atoi(argv[2]);
  status_fd = open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0644);
  mem = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  generation = calloc(pages, 4);
  if (status_fd < 0 || mem == MAP_FAILED || !generation) return 4;
  for (size_t i = 0; i < pages; i++) fill(i);
  signal(SIGTERM, on_term);
  pthread_t t[256];
  for (int k = 0; k < threads && k < 256; k++) pthread_create(&t[k], 0, worker, (void *)(size_t)k);
  pthread_t w;
  if (argc > 5) pthread_create(&w, 0, steps, argv);
  int64_t last = now(), pause = 0, when = 0, said = 0;
  while (!stop) {
    struct timespec ms = {0, 500000};
    nanosleep(&ms, 0);
    int64_t n = now();
    if (n - last > pause) pause = n - last, when = n;
    last = n;
    if (n - said > 20000) report("run", pause, when), said = n;
  }
  for (int k = 0; k < threads && k < 256; k++) pthread_join(t[k], 0);
  for (size_t i = 0; i < pages; i++) check(i);
  report(wrong ? "BAD" : "OK", pause, when);
  return wrong ? 1 : 0;
}
