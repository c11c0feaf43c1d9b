// workload SIZE_MB GAP_US READY RESULT: memory that is looked at while it moves, with a watch on itself (watch.h).
//
// A thread touches a random page each GAP_US; if mincore says that the page is not there it notes how long the touch took. On SIGTERM words of every
// page are checked.
static long gap_us;

static void *toucher(void *arg) {
  uint64_t r = 12345;
  prctl(PR_SET_TIMERSLACK, 1);
  while (!stop) {
    struct timespec pause = {0, gap_us * 1000};
    nanosleep(&pause, 0);
    size_t i = next(&r) % pages;
    unsigned char there = 1;
    if (mincore((void *)&mem[i * WORDS], 4096, &there) || (there & 1)) continue;
    int64_t a = ns(CLOCK_MONOTONIC);
    uint64_t got = mem[i * WORDS + i % WORDS];
    waited(ns(CLOCK_MONOTONIC) - a);
    if (got != word(i, i % WORDS)) wrong++;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  gap_us = atol(argv[2]);
  pthread_t t;
  if (begin(argv[1]) || pthread_create(&t, 0, toucher, 0) || watch(argv[3])) return 4;
  pthread_join(t, 0);
  return result(argv[4], 0);
}
