// sharer SIZE_MB PROCESSES STATUS [churn|calm|memfd|shm [FD]]: processes share anonymous memory whose every word each of them can check, and go on checking and
// changing it.
//
// Of each BLOCK pages in turn one process is the owner, which alone writes them; generation[i], shared as well, tells the others what is in it: odd, it is being
// changed; below BARE, word j = mix(i, generation, j); from BARE on, zeros, because its owner has dropped it by MADV_REMOVE. With churn
// each process has a second mapping of all of it in chunks that it moves, doubles, cuts and grows (mremap), drops the mapped pages of
// (MADV_DONTNEED, which changes nothing) and shows to children, and a second thread that checks and drops mapped pages through the
// first mapping. With memfd it is that, and the memory is a memfd named "shared", closed when mapped; another one stays open, and is checked by
// read(2), write(2) and mappings that come and go. With shm it is churn in files of /dev/shm. STATUS is as checker's. On SIGTERM every process checks every page once more. With FD, a socket, both memories are left empty,
// and each process sends its pid, where they are, and a userfaultfd without memory there, and waits for a byte.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512, PG = 4096, CHUNK = 64, BLOCK = 8 };
#define BARE (1u << 31)
static char *mem, **view;
static _Atomic uint32_t *generation;
static struct shared { atomic_long rounds, wrong, bad_page, bad_how; atomic_int stop, fails; char why[200]; } *all;
static size_t pages;
static int processes, me, churn, status_fd, sock = -1, memfd, shm, opened = -1;
enum { OPENED = 512 }; // pages

static void die(const char *what) {
  if (!atomic_fetch_add(&all->fails, 1)) snprintf(all->why, sizeof all->why, "%s: %s (process %d)", what, strerror(errno), me);
  all->stop = 1;
}

static uint64_t mix(uint64_t i, uint64_t g, uint64_t j) {
  uint64_t x = (i << 32 ^ g) + 0x9e3779b97f4a7c15ull * (j + 1);
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9ull, x ^= x >> 32;
  return x | 1; // never zero
}

static uint64_t rnd(uint64_t *r) { return (*r = *r * 6364136223846793005ull + 1442695040888963407ull) >> 20; }

// check looks at page i, of which at is a mapping.
static void check(const char *at, size_t i, int how) {
  const volatile uint64_t *w = (void *)at;
  for (;;) {
    uint32_t g = atomic_load(&generation[i]);
    if (g & 1) { // its owner is about to be done, or stopped in the middle
      if (all->stop > 1) return;
      continue;
    }
    int j = 0;
    while (j < WORDS && w[j] == (g >= BARE ? 0 : mix(i, g, j))) j++;
    if (j == WORDS) return;
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&generation[i]) != g) continue;
    atomic_fetch_add(&all->wrong, 1);
    atomic_store(&all->bad_page, i);
    atomic_store(&all->bad_how, how * 1000 + j);
    return;
  }
}

// change writes page i, or drops it and those behind it in its block.
static void change(size_t i, char *at, int drop) {
  size_t end = drop ? (i / BLOCK + 1) * BLOCK : i + 1;
  for (size_t k = i; k < end; k++) atomic_fetch_or(&generation[k], 1);
  if (drop && madvise(at, (end - i) * PG, MADV_REMOVE)) die("MADV_REMOVE");
  for (size_t k = i; k < end; k++) {
    uint32_t next = ((generation[k] & ~BARE & ~1) + 2) % BARE | (drop ? BARE : 0);
    uint64_t *w = (void *)at;
    for (int j = 0; j < WORDS && !drop; j++) w[j] = mix(k, next, j);
    atomic_store(&generation[k], next);
  }
}

static char *at(size_t i) { return view[i / CHUNK] + i % CHUNK * PG; }

static size_t mine(uint64_t *r) {
  size_t x = rnd(r) % (pages / processes);
  return x / BLOCK * BLOCK * processes + me * BLOCK + x % BLOCK;
}

static void mutate(uint64_t *r) {
  size_t k = rnd(r) % (pages / CHUNK), n = CHUNK * PG;
  char *p, *q;
  switch (rnd(r) % 6) {
  case 0: // moved
    if ((p = mmap(0, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) == MAP_FAILED) return die("mmap");
    if (mremap(view[k], n, n, MREMAP_MAYMOVE | MREMAP_FIXED, p) == MAP_FAILED) return die("mremap");
    view[k] = p;
    break;
  case 1: // a second mapping of the same pages
    if ((q = mremap(view[k], 0, n, MREMAP_MAYMOVE)) == MAP_FAILED) return die("mremap of nothing");
    for (int i = 0; i < CHUNK; i += 3) check(q + i * PG, k * CHUNK + i, 1);
    if (munmap(q, n)) die("munmap");
    break;
  case 2: // cut, and grown again
    if (munmap(view[k] + n / 2, n / 2)) return die("munmap");
    if ((p = mremap(view[k], n / 2, n, MREMAP_MAYMOVE)) == MAP_FAILED) return die("mremap to grow");
    view[k] = p;
    for (int i = CHUNK / 2; i < CHUNK; i += 3) check(p + i * PG, k * CHUNK + i, 2);
    break;
  case 3:
    if (madvise(view[k], n, MADV_DONTNEED)) die("MADV_DONTNEED");
    break;
  case 4: { // a child, which moves, drops and changes as well
    if (rnd(r) % 8) break;
    pid_t c = fork();
    if (c < 0) return die("fork");
    if (!c) {
      for (int i = 0; i < 200; i++) {
        size_t x = rnd(r) % pages;
        check(at(x), x, 3);
      }
      if (madvise(view[k], n, MADV_DONTNEED)) die("MADV_DONTNEED in a child");
      size_t x = mine(r); // its parent waits
      change(x, at(x), 1);
      x = mine(r);
      change(x, at(x), 0);
      if ((q = mremap(view[k], 0, n, MREMAP_MAYMOVE)) == MAP_FAILED) die("mremap in a child");
      else for (int i = 0; i < CHUNK; i += 5) check(q + i * PG, k * CHUNK + i, 4);
      _exit(0);
    }
    int ws;
    while (waitpid(c, &ws, 0) < 0 && errno == EINTR) {}
    if (ws) die("child");
    break;
  }
  case 5: { // a new VMA, with other rights
    size_t x = rnd(r) % (CHUNK - 4);
    if (mprotect(view[k] + x * PG, 4 * PG, PROT_READ) || mprotect(view[k] + x * PG, 4 * PG, PROT_READ | PROT_WRITE)) die("mprotect");
    break;
  }
  }
}

// by_descriptor checks a page of the open memfd, in all ways that raise no fault in what was mapped before.
static void by_descriptor(uint64_t *r) {
  size_t i = rnd(r) % OPENED;
  uint64_t w[WORDS], *m = w;
  int mapped = rnd(r) % 4 == 0;
  if (mapped) {
    if ((m = mmap(0, PG, PROT_READ, MAP_SHARED, opened, i * PG)) == MAP_FAILED) return die("mmap of a memfd");
  } else if (pread(opened, w, PG, i * PG) != PG) return die("read of a memfd");
  for (int j = 0; j < WORDS; j++)
    if (m[j] != mix(i, 1, j)) {
      atomic_fetch_add(&all->wrong, 1), all->bad_page = i, all->bad_how = 9000 + j;
      break;
    }
  if (mapped && munmap(m, PG)) die("munmap of a memfd");
  int j = rnd(r) % WORDS;
  uint64_t v = mix(i, 1, j);
  if (pwrite(opened, &v, sizeof v, i * PG + j * sizeof v) != sizeof v) die("write to a memfd");
}

static void *second(void *arg) {
  uint64_t r = me * 131 + 7;
  for (; !all->stop; atomic_fetch_add(&all->rounds, 1)) {
    size_t i = rnd(&r) % pages;
    check(mem + i * PG, i, 5);
    if (rnd(&r) % 16 == 0 && madvise(mem + i * PG, PG, MADV_DONTNEED)) die("MADV_DONTNEED");
  }
  return arg;
}

static void work(void) {
  uint64_t r = me * 77 + 1;
  pthread_t t;
  if (churn) {
    view = calloc(pages / CHUNK, sizeof *view);
    char *v = mremap(mem, 0, pages * PG, MREMAP_MAYMOVE);
    if (v == MAP_FAILED) return die("mremap");
    for (size_t k = 0; k < pages / CHUNK; k++) view[k] = v + k * CHUNK * PG;
    if (me % 2) pthread_create(&t, 0, second, 0);
  }
  while (!all->stop) {
    size_t i = rnd(&r) % pages;
    check(churn ? at(i) : mem + i * PG, i, 0);
    if (rnd(&r) % 4 == 0) {
      i = mine(&r);
      change(i, churn && i % 2 ? at(i) : mem + i * PG, rnd(&r) % (churn ? 2 : 8) == 0);
    }
    if (churn && rnd(&r) % 16 == 0) mutate(&r);
    if (memfd) by_descriptor(&r);
    atomic_fetch_add(&all->rounds, 1);
  }
  if (churn && me % 2) pthread_join(t, 0);
}

static void last_look(void) {
  for (size_t i = 0; i < pages; i++) check(churn ? at(i) : mem + i * PG, i, 6);
}

static void on_term(int s) { all->stop = 1; }

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static void report(const char *word, int64_t pause, int64_t when) {
  char line[400];
  int n = snprintf(line, sizeof line, "%-4s %12ld %10ld %20ld %8ld", word, atomic_load(&all->rounds), (long)pause, (long)when, atomic_load(&all->wrong));
  if (all->fails) n = snprintf(line, sizeof line, "FAIL %s", all->why);
  else if (all->wrong) n = snprintf(line, sizeof line, "FAIL page %ld, %ld", all->bad_page, all->bad_how);
  line[n++] = '\n';
  if (pwrite(status_fd, line, n, 0) != n) _exit(3);
}

static void *share(size_t n) {
  int fd = memfd ? memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING) : -1;
  if (memfd && (fd < 0 || ftruncate(fd, n) || fchmod(fd, 0640) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))) _exit(4);
  static char name[] = "/dev/shm/shared-0";
  if (shm) {
    name[sizeof name - 2]++;
    if ((fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0600)) < 0 || ftruncate(fd, n)) _exit(4);
  }
  void *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
  if (p == MAP_FAILED) _exit(4);
  if (fd >= 0) close(fd);
  return p;
}

static void hand_over(void) {
  if (sock < 0) return;
  int u = syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api a = {UFFD_API, UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP, 0};
  if (u < 0 || ioctl(u, UFFDIO_API, &a)) _exit(5);
  uint64_t m[3] = {getpid(), (uint64_t)mem, (uint64_t)generation};
  struct iovec v = {m, sizeof m};
  char c[CMSG_SPACE(4)] = {0};
  struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
  struct cmsghdr *q = CMSG_FIRSTHDR(&h);
  q->cmsg_level = SOL_SOCKET, q->cmsg_type = SCM_RIGHTS, q->cmsg_len = CMSG_LEN(4);
  memcpy(CMSG_DATA(q), &u, 4);
  char b;
  if (sendmsg(sock, &h, 0) < 0 || recv(sock, &b, 1, 0) != 1) _exit(6);
  close(u);
}

int main(int argc, char **argv) {
  pages = strtoull(argv[1], 0, 10) << 8;
  processes = atoi(argv[2]); // PROCESSES * BLOCK divides the number of pages
  status_fd = open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0644);
  memfd = argc > 4 && !strcmp(argv[4], "memfd");
  shm = argc > 4 && !strcmp(argv[4], "shm");
  churn = memfd || shm || argc > 4 && !strcmp(argv[4], "churn");
  if (argc > 5) sock = atoi(argv[5]);
  mem = share(pages * PG);
  generation = share(pages * 4);
  all = share(sizeof *all);
  for (size_t i = 0; i < pages && sock < 0; i++) {
    uint64_t *w = (void *)(mem + i * PG);
    generation[i] = i % 5 == 4 ? BARE : 2;
    for (int j = 0; j < WORDS && i % 5 != 4; j++) w[j] = mix(i, 2, j);
  }
  if (memfd) {
    opened = memfd_create("open", 0);
    for (uint64_t i = 0; i < OPENED * WORDS; i++) {
      uint64_t v = mix(i / WORDS, 1, i % WORDS);
      if (write(opened, &v, sizeof v) != sizeof v) _exit(7);
    }
    if (mmap(0, OPENED * PG, PROT_READ | PROT_WRITE, MAP_SHARED, opened, 0) == MAP_FAILED) _exit(7);
  }
  pid_t kids[64];
  for (int k = 0; k < processes && k < 64; k++) {
    me = k;
    if (!(kids[k] = fork())) {
      signal(SIGTERM, SIG_IGN);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      hand_over();
      work();
      last_look();
      _exit(0);
    }
  }
  me = processes; // owns nothing, checks all
  signal(SIGTERM, on_term);
  hand_over();
  int64_t last = now(), pause = 0, when = 0, said = 0;
  while (!all->stop) {
    struct timespec ms = {0, 500000};
    nanosleep(&ms, 0);
    int64_t n = now();
    if (n - last > pause) pause = n - last, when = n;
    last = n;
    if (n - said > 20000) report("run", pause, when), said = n;
  }
  for (int k = 0; k < processes && k < 64; k++) {
    int ws;
    while (waitpid(kids[k], &ws, 0) < 0 && errno == EINTR) {}
    if (ws) die("process");
  }
  churn = 0;
  last_look();
  report("OK", pause, when);
  return all->wrong || all->fails;
}
