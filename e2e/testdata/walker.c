// walker RESULT: holds memory whose every word it can check. On SIGUSR1 it walks over the first part, page by page, and strides over the rest, and
// asks before each touch whether the page is there. After one that was not it rests for a moment, as a program that
// has other work would. RESULT gets "ready", then "walk THERE MISSING stride THERE MISSING wrong N".
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = 512, WALK = 1000, STRIDE = 90, STEPS = 300, PAGES = WALK + STRIDE * STEPS };
static uint64_t *mem;
static int result;

static uint64_t word(size_t page, size_t i) { return (page << 20 ^ i) * 0x9e3779b97f4a7c15ull | 1; }

static int wrong;
static void touch(size_t page, int *there, int *missing) {
  unsigned char here;
  if (mincore(mem + page * WORDS, PAGE, &here)) _exit(4);
  for (size_t i = 0; i < WORDS; i++)
    if (mem[page * WORDS + i] != word(page, i)) wrong++;
  if (here & 1) {
    ++*there;
    return;
  }
  ++*missing;
  struct timespec rest = {0, 50000000};
  nanosleep(&rest, 0);
}

int main(int argc, char **argv) {
  sigset_t usr1;
  int sig, there = 0, missing = 0, there2 = 0, missing2 = 0;
  if (argc < 2) return 2;
  sigemptyset(&usr1), sigaddset(&usr1, SIGUSR1), sigprocmask(SIG_BLOCK, &usr1, 0);
  mem = mmap(0, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mem == MAP_FAILED) return 3;
  for (size_t p = 0; p < PAGES; p++)
    for (size_t i = 0; i < WORDS; i++) mem[p * WORDS + i] = word(p, i);
  if ((result = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644)) < 0 || dprintf(result, "ready\n") < 0) return 5;
  sigwait(&usr1, &sig);
  for (size_t p = 0; p < WALK; p++) touch(p, &there, &missing);
  for (size_t s = 0; s < STEPS; s++) touch(WALK + s * STRIDE, &there2, &missing2);
  dprintf(result, "walk %d %d stride %d %d wrong %d\n", there, missing, there2, missing2, wrong);
  for (;;) pause();
}
