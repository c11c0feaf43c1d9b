// churn SIZE_MB STATUS: changes its address space all the time, knows what every page must hold, and looks.
//
// BLOCKS blocks of equal size are mapped one by one; each operation takes a random block: move it (mremap), grow and shrink it,
// drop half of it (MADV_DONTNEED: zeros from then on), unmap and map it anew, split it (mprotect), check it, write it, or fork a
// child that checks everything and writes a part of its copy. A page holds one number 512 times: (block, page, generation), or zeros.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 64, WORDS = 512 };
static uint64_t *at[BLOCKS];
static uint32_t *gen[BLOCKS]; // of each page; 0: zeros
static size_t per;            // pages a block
static volatile sig_atomic_t stop;
static uint64_t rnd = 12345;
static int status_fd;
static long ops, wrong, forks;

static uint64_t next(void) {
  rnd = rnd * 6364136223846793005ull + 1442695040888963407ull;
  return rnd >> 24;
}

static uint64_t value(size_t b, size_t p, uint32_t g) { return g ? (uint64_t)b << 56 ^ (uint64_t)p << 32 ^ g : 0; }

static void put(size_t b, size_t p) {
  uint64_t v = value(b, p, ++gen[b][p]);
  for (int i = 0; i < WORDS; i++) at[b][p * WORDS + i] = v;
}

static void look(size_t b, size_t p) {
  uint64_t v = value(b, p, gen[b][p]);
  for (int i = 0; i < WORDS; i++)
    if (at[b][p * WORDS + i] != v) {
      if (wrong++ == 0) fprintf(stderr, "block %zu page %zu word %d: got %lx, want %lx\n", b, p, i, at[b][p * WORDS + i], v);
      return;
    }
}

static void die(const char *what) {
  dprintf(status_fd, "FAIL %s errno %d\n", what, errno);
  _exit(9);
}

static uint64_t *map(size_t pages) {
  void *p = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) die("mmap");
  return p;
}

static void on_term(int s) { stop = 1; }

static void child(void) {
  for (size_t b = 0; b < BLOCKS; b++)
    for (size_t p = next() % 7; p < per; p += 7) look(b, p);
  for (int k = 0; k < 64; k++) put(next() % BLOCKS, next() % per);
  for (size_t b = 0; b < BLOCKS; b += 3)
    for (size_t p = 0; p < per; p += 5) look(b, p);
  _exit(wrong ? 1 : 0);
}

static void operation(void) {
  size_t b = next() % BLOCKS, half = per / 2;
  switch (next() % 16) {
    case 0: { // move to a place of the kernel's choice
      uint64_t *to = map(per);
      if (mremap(at[b], per * 4096, per * 4096, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED)
        at[b] = to;
      else if (errno != EFAULT || munmap(to, per * 4096)) // several mappings that were one before the move: a known limit
        die("mremap");
      break;
    }
    case 1: { // grow: what is new is zero; shrink again
      void *p = mremap(at[b], per * 4096, (per + 16) * 4096, MREMAP_MAYMOVE);
      if (p == MAP_FAILED && errno == EFAULT) break;
      if (p == MAP_FAILED) die("grow");
      at[b] = p;
      for (int i = 0; i < 16 * WORDS; i += 37)
        if (at[b][per * WORDS + i]) wrong++;
      if (mremap(at[b], (per + 16) * 4096, per * 4096, 0) == MAP_FAILED) die("shrink");
      break;
    }
    case 2:
      if (madvise(at[b] + half * WORDS, (per - half) * 4096, MADV_DONTNEED)) die("madvise");
      for (size_t p = half; p < per; p++) gen[b][p] = 0;
      break;
    case 3:
      if (munmap(at[b], per * 4096)) die("munmap");
      at[b] = map(per);
      for (size_t p = 0; p < per; p++) gen[b][p] = 0;
      for (size_t p = 0; p < per; p += 2) put(b, p);
      break;
    case 4: // split without an event
      if (mprotect(at[b] + half * WORDS, 4096, PROT_READ)) die("mprotect");
      look(b, half);
      if (mprotect(at[b] + half * WORDS, 4096, PROT_READ | PROT_WRITE)) die("mprotect back");
      break;
    case 5: {
      if (next() % 4) break;
      pid_t c = fork();
      if (c < 0) die("fork");
      if (c == 0) child();
      put(b, next() % per); // while the child looks
      int st;
      if (waitpid(c, &st, 0) != c) die("waitpid");
      if (st) wrong++;
      forks++;
      break;
    }
    default:
      for (int k = 0; k < 32; k++) {
        size_t p = next() % per;
        look(b, p);
        if (next() % 3 == 0) put(b, p);
      }
  }
  ops++;
}

static void say(const char *w) {
  char line[128];
  int n = snprintf(line, sizeof line, "%-4s %12ld %10ld %20d %8ld\n", w, ops, forks, 0, wrong);
  if (pwrite(status_fd, line, n, 0) != n) _exit(3);
}

int main(int argc, char **argv) {
  per = strtoull(argv[1], 0, 10) * 256 / BLOCKS;
  status_fd = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0644);
  for (size_t b = 0; b < BLOCKS; b++) {
    at[b] = map(per);
    gen[b] = calloc(per, 4);
    for (size_t p = 0; p < per; p++)
      if (p % 9) put(b, p);
  }
  signal(SIGTERM, on_term);
  while (!stop) {
    operation();
    if (ops % 64 == 0) say("run");
  }
  for (size_t b = 0; b < BLOCKS; b++)
    for (size_t p = 0; p < per; p++) look(b, p);
  say(wrong ? "BAD" : "OK");
  return wrong != 0;
}
