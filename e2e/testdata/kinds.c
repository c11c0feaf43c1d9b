// kinds DIR: a tree of processes and memory of many kinds. Each SIGUSR1 makes the root look whether all is as it was; its verdict goes to
// DIR/verdict: OK, or what is wrong. The first look is meant for a tree whose memory is still missing.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 64, SIZE = PAGES * PAGE };
static volatile sig_atomic_t asked;
static FILE *verdict;
static int bad;

#define WANT(what, ok) do { if (!(ok)) { bad++; fprintf(verdict, "%s (errno %d)\n", what, errno); } } while (0)
#define MUST(ok) do { if (!(ok)) { perror(#ok); exit(3); } } while (0)

static void on_usr1(int s) { asked = 1; }

static void *map(int flags) {
  void *p = mmap(0, SIZE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  MUST(p != MAP_FAILED);
  return p;
}

static void put(void *p, uint64_t seed) {
  for (int i = 0; i < SIZE / 8; i++) ((uint64_t *)p)[i] = seed * 0x9e3779b97f4a7c15ull + i;
}

static int is(const void *p, uint64_t seed) {
  for (int i = 0; i < SIZE / 8; i++)
    if (((uint64_t *)p)[i] != seed * 0x9e3779b97f4a7c15ull + i) return 0;
  return 1;
}

static int zero(const void *p) {
  for (int i = 0; i < SIZE / 8; i++)
    if (((uint64_t *)p)[i]) return 0;
  return 1;
}

static long locked_kb(void) {
  char line[256];
  long kb = -1;
  FILE *f = fopen("/proc/self/status", "r");
  MUST(f);
  while (fgets(line, sizeof line, f)) sscanf(line, "VmLck: %ld", &kb);
  fclose(f);
  return kb;
}

static char state(pid_t pid) {
  char name[64], c = '?';
  snprintf(name, sizeof name, "/proc/%d/stat", pid);
  FILE *f = fopen(name, "r");
  if (!f) return '?';
  if (fscanf(f, "%*d (%*[^)]) %c", &c) != 1) c = '?';
  fclose(f);
  return c;
}

// A thread that holds a robust mutex and ends by a bare exit: the kernel marks the mutex and wakes who joins, and waits for no page.
static pthread_mutex_t *robust;
static int go[2], holds;
static void *owner(void *a) {
  char c;
  MUST(pthread_mutex_lock(robust) == 0);
  __atomic_store_n(&holds, 1, __ATOMIC_SEQ_CST);
  if (read(go[0], &c, 1) == 1) syscall(SYS_exit, 0);
  return 0;
}

static double now(clockid_t c) {
  struct timespec t;
  clock_gettime(c, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static int same_file(const char *path, int fd, const char *text) {
  char b[64] = "";
  struct stat x, y;
  int n = open(path, O_RDONLY);
  int ok = n >= 0 && read(n, b, sizeof b) == (ssize_t)strlen(text) && !strcmp(b, text) && fstat(fd, &x) == 0 && fstat(n, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
  close(n);
  return ok;
}

static int make(const char *path, const char *text) {
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  MUST(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  return fd;
}

int main(int argc, char **argv) {
  char path[256], host[256], h[256];
  MUST(chdir(argv[1]) == 0 && gethostname(host, sizeof host) == 0);

  // Memory.
  char *plain = map(MAP_PRIVATE), *locked = map(MAP_PRIVATE), *none = map(MAP_PRIVATE), *wo = map(MAP_PRIVATE), *wiped = map(MAP_PRIVATE),
       *absent = map(MAP_PRIVATE), *dropped = map(MAP_PRIVATE), *shared = map(MAP_SHARED), *heap = sbrk(SIZE);
  char *all[] = {plain, locked, none, wo, wiped, absent, dropped, shared, heap};
  for (int i = 0; i < 9; i++) put(all[i], i + 1);
  int zerofd = open("/dev/zero", O_RDWR);
  char *fromzero = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zerofd, 0);
  MUST(zerofd >= 0 && fromzero != MAP_FAILED);
  close(zerofd);
  put(fromzero, 10);
  int file = make("cow", "");
  MUST(ftruncate(file, SIZE) == 0);
  char *cow = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  MUST(cow != MAP_FAILED);
  put(cow, 11);
  MUST(mlock(locked, SIZE) == 0);
  MUST(mprotect(none, SIZE, PROT_NONE) == 0 && mprotect(wo, SIZE, PROT_WRITE) == 0);
  MUST(madvise(wiped, SIZE, MADV_WIPEONFORK) == 0 && madvise(absent, SIZE, MADV_DONTFORK) == 0);
  long kb = locked_kb();

  // Processes. The counter is in memory that they share.
  volatile uint64_t *box = map(MAP_SHARED);
  pid_t dead = fork();
  if (!dead) _exit(42);
  siginfo_t si;
  MUST(waitid(P_PID, dead, &si, WEXITED | WNOWAIT) == 0);
  pid_t stopped = fork();
  if (!stopped)
    for (raise(SIGSTOP);; usleep(1000)) box[0]++;
  int st;
  MUST(waitpid(stopped, &st, WUNTRACED) == stopped && WIFSTOPPED(st));
  pid_t leader = fork();
  if (!leader) {
    MUST(setsid() > 0);
    pid_t member = fork();
    if (!member) {
      MUST(setpgid(0, 0) == 0);
      for (box[1] = getpid();; usleep(1000)) box[2]++;
    }
    for (;; usleep(1000)) box[3]++;
  }
  while (!box[1]) usleep(100);
  pid_t member = box[1];

  // Threads.
  robust = map(MAP_PRIVATE);
  pthread_mutexattr_t ma;
  pthread_mutexattr_init(&ma);
  pthread_mutexattr_setrobust(&ma, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(robust, &ma);
  pthread_t owns;
  MUST(pipe(go) == 0 && pthread_create(&owns, 0, owner, 0) == 0);
  while (!__atomic_load_n(&holds, __ATOMIC_SEQ_CST)) usleep(100);

  // Files.
  int shm = make("/dev/shm/kinds", "in shm"), run = make("/run/kinds", "in run");
  struct stat one, two;
  MUST(stat("t1/f", &one) == 0 && stat("t2/f", &two) == 0 && one.st_ino == two.st_ino);

  // A listener, and a connection to somebody outside.
  int lis = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons(8130)};
  setsockopt(lis, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  MUST(bind(lis, (void *)&sa, sizeof sa) == 0 && listen(lis, 5) == 0);
  signal(SIGUSR1, on_usr1);
  close(make("listens", ""));
  int conn = accept(lis, 0, 0);
  MUST(conn >= 0);

  double mono = now(CLOCK_MONOTONIC), boot = now(CLOCK_BOOTTIME), real = now(CLOCK_REALTIME);
  close(make("ready", ""));

  for (int look = 0;; look++) {
    while (!asked) pause();
    asked = 0;
    bad = 0;
    verdict = fopen("verdict.new", "w");
    MUST(verdict);
    if (look == 0) {
      struct timespec late;
      clock_gettime(CLOCK_REALTIME, &late);
      late.tv_sec += 60; // only ends a hang
      WANT("join of a thread that has ended", write(go[1], "x", 1) == 1 && (errno = pthread_timedjoin_np(owns, 0, &late)) == 0);
      WANT("mutex of a dead thread", (errno = pthread_mutex_lock(robust)) == EOWNERDEAD);
      WANT("stopped child", state(stopped) == 'T');
      WANT("stopped child does not run", box[0] == 0);
      kill(stopped, SIGCONT);
      WANT("madvise", madvise(dropped, SIZE, MADV_DONTNEED) == 0 && zero(dropped)); // which had never come
      WANT("status of the zombie", state(dead) == 'Z' && waitpid(dead, &st, 0) == dead && WIFEXITED(st) && WEXITSTATUS(st) == 42);
      errno = 0;
      WANT("connection is closed", recv(conn, path, 1, 0) <= 0);
    }
    WANT("sessions", getsid(leader) == leader && getsid(member) == leader && getpgid(member) == member && getsid(0) == getsid(stopped));
    uint64_t was[4] = {box[0], box[1], box[2], box[3]};
    for (int i = 0; i < 60000 && (box[0] == was[0] || box[2] == was[2] || box[3] == was[3]); i++) usleep(1000); // only ends a hang
    WANT("children run", box[0] > was[0] && box[2] > was[2] && box[3] > was[3]);
    WANT("locked memory", is(locked, 2) && locked_kb() == kb);
    WANT("protect", mprotect(none, SIZE, PROT_READ) == 0 && mprotect(wo, SIZE, PROT_READ) == 0);
    WANT("memory without access", is(none, 3));
    WANT("write-only memory", is(wo, 4));
    WANT("protect again", mprotect(none, SIZE, PROT_NONE) == 0 && mprotect(wo, SIZE, PROT_WRITE) == 0);
    pid_t c = fork(); // before the pages that it must not have were touched
    if (!c) {
      unsigned char v[PAGES];
      _exit(!zero(wiped) ? 1 : mincore(absent, SIZE, v) == 0 || errno != ENOMEM ? 2 : !is(shared, 8) ? 3 : !is(plain, 1) ? 4 : 0);
    }
    WANT("fork", waitpid(c, &st, 0) == c && WIFEXITED(st));
    if (st) fprintf(verdict, "forked child: status %#x\n", st), bad++;
    WANT("memory that a child has not", is(absent, 6));
    WANT("memory that is wiped for a child", is(wiped, 5));
    WANT("plain memory", is(plain, 1));
    WANT("shared memory", is(shared, 8));
    WANT("heap", is(heap, 9));
    WANT("memory of /dev/zero", is(fromzero, 10));
    WANT("changed pages of a file", is(cow, 11));
    WANT("host name", gethostname(h, sizeof h) == 0 && !strcmp(h, host));
    double d = now(CLOCK_REALTIME) - real, m = now(CLOCK_MONOTONIC) - mono, b = now(CLOCK_BOOTTIME) - boot;
    WANT("clocks", m > 0 && m < d + 500 && b > 0 && b < d + 500); // the hosts' are 1,000 s apart
    WANT("/dev/shm", same_file("/dev/shm/kinds", shm, "in shm"));
    WANT("/run", same_file("/run/kinds", run, "in run"));
    WANT("inode numbers", stat("t1/f", &one) == 0 && stat("t2/f", &two) == 0 && (one.st_ino != two.st_ino || one.st_dev != two.st_dev));
    if (!bad) fprintf(verdict, "OK\n");
    fclose(verdict);
    rename("verdict.new", "verdict");
  }
}
