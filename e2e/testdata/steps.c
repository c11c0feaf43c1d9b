// steps SIZE_MB DIR IP PORT: does what goes wrong when a migration does, and tells a witness at IP, PORT each step.
//
// memory   two threads check and change pages of SIZE_MB, every word of which is known
// churn    drops pages (zeros from then on), splits mappings, and looks
// files    appends numbered lines to DIR/journal, makes, renames and removes names beside it, reads DIR/data, whose every word is known
// steps    a millisecond apart, each a word to the witness by UDP; the next is made when it has answered. What was wrong goes with it.
//
// With standard output not a device the lines of the journal go there, too. On SIGTERM all is looked at once more, and the witness is told how
// many lines the journal has.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512, PAGE = 4096, THREADS = 2, CHURN = 512, DATA = 256 };
#define LAST (1ull << 62) // with it comes the number of lines

static uint64_t *mem;
static uint32_t *generation;
static size_t pages;
static const char *dir;
static atomic_int stop;
static atomic_ulong wrong, lines;
static char first[200]; // what was wrong first
static pthread_mutex_t telling = PTHREAD_MUTEX_INITIALIZER;

static void bad(const char *what, unsigned long where) {
  int e = errno;
  pthread_mutex_lock(&telling);
  if (!wrong) snprintf(first, sizeof first, "%s %lu (errno %d: %s)", what, where, e, strerror(e));
  wrong++; // whoever sees it sees first
  pthread_mutex_unlock(&telling);
}

static uint64_t mix(uint64_t i, uint64_t g, uint64_t j) {
  uint64_t x = (i << 32 ^ g) + 0x9e3779b97f4a7c15ull * (j + 1);
  x ^= x >> 29, x *= 0xbf58476d1ce4e5b9ull, x ^= x >> 32;
  return x | 1; // never zero
}

static uint64_t rnd(uint64_t *r) { return (*r = *r * 6364136223846793005ull + 1442695040888963407ull) >> 20; }

static void rest(long us) {
  struct timespec t = {0, us * 1000};
  nanosleep(&t, 0);
}

// A machine that is short of memory may refuse a system call: once more.
#define AGAIN(x) ({ long _r; while ((_r = (x)) < 0 && errno == ENOMEM) rest(1000); _r; })

static void fill(size_t i) {
  for (int j = 0; j < WORDS; j++) mem[i * WORDS + j] = mix(i, generation[i], j);
}

static void check(size_t i) {
  for (int j = 0; j < WORDS; j++)
    if (mem[i * WORDS + j] != mix(i, generation[i], j)) {
      bad("page", i);
      return;
    }
}

static void *memory(void *arg) {
  size_t me = (size_t)arg, share = pages / THREADS;
  for (uint64_t r = me * 77 + 1, n = 0; !stop; n++) {
    size_t i = me * share + rnd(&r) % share;
    check(i);
    if (r >> 62 == 0) generation[i]++, fill(i);
    if (n % 16 == 0) rest(300);
  }
  return 0;
}

// churn's pages hold a number 512 times, or zeros.
static uint64_t *churned;
static uint64_t held[CHURN];

static void look(size_t p) {
  for (int j = 0; j < WORDS; j++)
    if (churned[p * WORDS + j] != held[p]) {
      bad(held[p] ? "churned page" : "dropped page", p);
      return;
    }
}

static void put(size_t p, uint64_t v) {
  held[p] = v;
  for (int j = 0; j < WORDS; j++) churned[p * WORDS + j] = v;
}

static void *churn(void *arg) {
  (void)arg;
  for (uint64_t r = 5, n = 1; !stop; n++) {
    size_t p = rnd(&r) % (CHURN - 16), len = 1 + rnd(&r) % 15;
    switch (rnd(&r) % 8) {
      case 0: // gone from here on
        if (madvise(churned + p * WORDS, len * PAGE, MADV_DONTNEED)) bad("madvise", p);
        for (size_t i = p; i < p + len; i++) held[i] = 0;
        break;
      case 1: // two mappings more, without a word to anybody
        if (AGAIN(mprotect(churned + p * WORDS, PAGE, PROT_READ))) bad("mprotect", p);
        look(p);
        break;
      case 2:
        if (AGAIN(mprotect(churned, CHURN * PAGE, PROT_READ | PROT_WRITE))) bad("mprotect", p);
        break;
      case 3:
        if (AGAIN(mprotect(churned + p * WORDS, len * PAGE, PROT_READ | PROT_WRITE))) bad("mprotect", p);
        for (size_t i = p; i < p + len; i++) put(i, n << 16 ^ i);
        break;
      default:
        look(p);
    }
    rest(300);
  }
  return 0;
}

static int data;

static void look_data(size_t p) {
  uint64_t page[WORDS];
  if (AGAIN(pread(data, page, PAGE, p * PAGE)) != PAGE) {
    bad("read", p);
    return;
  }
  for (int j = 0; j < WORDS; j++)
    if (page[j] != mix(p, 0, j)) {
      bad("data", p);
      return;
    }
}

static void *files(void *arg) {
  (void)arg;
  struct stat st;
  int out = !fstat(1, &st) && !S_ISCHR(st.st_mode);
  int fd = openat(AT_FDCWD, "journal", O_CREAT | O_EXCL | O_WRONLY | O_APPEND, 0600);
  if (fd < 0) bad("open", 0);
  for (uint64_t n = 1, r = 9; !stop; n++) {
    char line[32];
    int len = snprintf(line, sizeof line, "%lu\n", n);
    if (AGAIN(write(fd, line, len)) != len) bad("append", n);
    if (out && AGAIN(write(1, line, len)) != len) bad("print", n);
    atomic_store(&lines, n);
    // The kernel's FUSE makes the file first and finds no memory for its inode then (fs/fuse/dir.c, fuse_create_open): once more it may be there.
    int f, excl = O_EXCL;
    while ((f = open("new", O_CREAT | excl | O_WRONLY, 0600)) < 0 && errno == ENOMEM) excl = 0, rest(1000);
    if (f < 0 || AGAIN(write(f, line, len)) != len || close(f)) bad("make", n);
    if (AGAIN(rename("new", "old"))) bad("rename", n);
    if (AGAIN(stat("old", &st)) || st.st_size != len) bad("stat", n);
    if (AGAIN(unlink("old"))) bad("unlink", n);
    look_data(rnd(&r) % DATA);
    rest(1000);
  }
  return 0;
}

static struct sockaddr_in to;

// tell says a step until the witness has heard it.
static void tell(int fd, uint64_t step, int give_up) {
  struct {
    uint64_t step, wrong;
    char first[sizeof first];
  } word = {step, atomic_load(&wrong), ""};
  if (word.wrong) memcpy(word.first, first, sizeof first);
  for (uint64_t answer = 0; answer != step && !(give_up && stop);) {
    sendto(fd, &word, word.wrong ? sizeof word : 16, 0, (void *)&to, sizeof to);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (answer != step && poll(&p, 1, 100) > 0)
      if (recv(fd, &answer, sizeof answer, MSG_DONTWAIT) != sizeof answer) answer = 0; // what is queued does not move
  }
}

static int udp(void) {
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (fd < 0) _exit(5);
  return fd;
}

static void *steps(void *arg) {
  (void)arg;
  int fd = udp();
  for (uint64_t step = 1; !stop; step++) tell(fd, step, 1), rest(1000);
  close(fd);
  return 0;
}

static void on_term(int s) { (void)s, stop = 1; }

static void *map(size_t n) {
  void *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) _exit(4);
  return p;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  pages = strtoull(argv[1], 0, 10) << 8;
  dir = argv[2];
  to = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(argv[4]))};
  inet_pton(AF_INET, argv[3], &to.sin_addr);
  if ((mkdir(dir, 0700) && errno != EEXIST) || chdir(dir)) return 3;
  data = open("data", O_CREAT | O_EXCL | O_RDWR, 0600);
  for (size_t p = 0; p < DATA; p++) {
    uint64_t page[WORDS];
    for (int j = 0; j < WORDS; j++) page[j] = mix(p, 0, j);
    if (write(data, page, PAGE) != PAGE) return 3;
  }
  mem = map(pages * PAGE), churned = map(CHURN * PAGE);
  generation = calloc(pages, 4);
  for (size_t i = 0; i < pages; i++) fill(i);
  for (size_t i = 0; i < CHURN; i++) put(i, i % 9 ? i + 1 : 0);
  struct sigaction sa = {.sa_handler = on_term, .sa_flags = SA_RESTART};
  sigaction(SIGTERM, &sa, 0);
  signal(SIGPIPE, SIG_IGN);
  pthread_t t[THREADS + 3];
  for (int k = 0; k < THREADS; k++) pthread_create(&t[k], 0, memory, (void *)(size_t)k);
  pthread_create(&t[THREADS], 0, churn, 0);
  pthread_create(&t[THREADS + 1], 0, files, 0);
  pthread_create(&t[THREADS + 2], 0, steps, 0);
  for (int k = 0; k < THREADS + 3; k++) pthread_join(t[k], 0);
  for (size_t i = 0; i < pages; i++) check(i);
  for (size_t i = 0; i < CHURN; i++) look(i);
  for (size_t p = 0; p < DATA; p++) look_data(p);
  tell(udp(), LAST | atomic_load(&lines), 0);
  return wrong ? 1 : 0;
}
