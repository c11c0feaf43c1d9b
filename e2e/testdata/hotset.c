// hotset MB STATUS: memory whose every word it can check, and of which it reads a tenth, the same random pages, again and again. On SIGUSR1 it touches no
// memory any more; on SIGUSR2, after that, it looks at every word. STATUS gets "ready PAGES" (of the tenth), "quiet", "wrong N".
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = 512 };
static volatile sig_atomic_t quiet;
static void on_usr1(int sig) { quiet = sig; }

static uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}
static uint64_t word(size_t page, size_t i) { return mix(page << 20 ^ i) | 1; }

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  size_t pages = strtoul(argv[1], 0, 10) << 20 >> 12, n = 0, wrong = 0;
  uint64_t *mem = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint32_t *hot = malloc(pages * sizeof *hot);
  int status = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644), sig;
  if (mem == MAP_FAILED || !hot || status < 0) return 3;
  madvise(mem, pages * PAGE, MADV_NOHUGEPAGE); // a kernel without them is fine
  for (size_t p = 0; p < pages; p++) {
    for (size_t i = 0; i < WORDS; i++) mem[p * WORDS + i] = word(p, i);
    if (mix(p + 7) % 10 == 0) hot[n++] = p;
  }
  sigset_t usr2;
  sigemptyset(&usr2), sigaddset(&usr2, SIGUSR2), sigprocmask(SIG_BLOCK, &usr2, 0);
  signal(SIGUSR1, on_usr1);
  dprintf(status, "ready %zu\n", n);
  while (!quiet)
    for (size_t i = 0; i < n; i++) wrong += mem[hot[i] * (size_t)WORDS] != word(hot[i], 0);
  dprintf(status, "quiet\n");
  sigwait(&usr2, &sig);
  for (size_t p = 0; p < pages; p++)
    for (size_t i = 0; i < WORDS; i++) wrong += mem[p * WORDS + i] != word(p, i);
  dprintf(status, "wrong %zu\n", wrong);
  for (;;) pause();
}
