// writer PATTERN SIZE_MB READY RESULT: memory that is written while it moves, with a watch on itself (watch.h).
//
// Writers go through pages as PATTERN says: idle (nobody writes), seq (one after the other, 25 pages each millisecond), uniform (at random, 10 each
// millisecond), zipf (25, some of them far more often than others: exponent 0.99), storm (four threads at random, without rest). If mincore says that a
// page is not there a writer notes how long it waited for it. On SIGTERM words of every page are checked.
static const char *pattern;
static double zeta, eta, alpha, half; // Gray et al., "Quickly generating billion-record synthetic databases"

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
  if (waits) waited(ns(CLOCK_MONOTONIC) - a);
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

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  pattern = argv[1];
  if (begin(argv[2])) return 4;
  for (size_t i = 0; i < pages; i++) mem[i * WORDS] = (uint64_t)(uint32_t)i << 32;
  if (!strcmp(pattern, "zipf")) zipf_begin();
  pthread_t t[4];
  int threads = !strcmp(pattern, "idle") ? 0 : !strcmp(pattern, "storm") ? 4 : 1;
  for (long i = 0; i < threads; i++)
    if (pthread_create(&t[i], 0, writer, (void *)i)) return 4;
  if (watch(argv[3])) return 4;
  for (int i = 0; i < threads; i++) pthread_join(t[i], 0);
  for (size_t i = 0; i < pages; i++)
    if (mem[i * WORDS] >> 32 != (uint32_t)i) wrong++;
  return result(argv[4], 1);
}
