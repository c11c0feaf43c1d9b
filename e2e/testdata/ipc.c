// ipc SIZE_KB STATUS: a System V semaphore set, a message queue with two messages, and, if SIZE_KB is not 0, a segment of shared memory,
// all of them looked at again and again. STATUS is as checker's: "run N", N counts, or "FAIL what"; SIGTERM ends it with "OK".
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <time.h>
#include <unistd.h>

static int status_fd;
static long rounds;
static volatile sig_atomic_t stop;

static void on_term(int s) { stop = 1; }

static void say(const char *word) {
  char line[60];
  int n = snprintf(line, sizeof line, "%-4s %12ld 0 0 0\n", word, rounds);
  if (pwrite(status_fd, line, n, 0) != n) _exit(3);
}

static void fail(const char *what) {
  char line[200];
  int n = snprintf(line, sizeof line, "FAIL %s: %s\n", what, strerror(errno));
  if (pwrite(status_fd, line, n, 0) != n) _exit(3);
  _exit(1);
}

static unsigned long mix(unsigned long i) { return (i + 1) * 0x9e3779b97f4a7c15ul | 1; }

int main(int argc, char **argv) {
  size_t words = strtoul(argv[1], 0, 10) << 7;
  status_fd = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0644);
  int sem = semget(0x1234, 3, IPC_CREAT | 0640), queue = msgget(0x4321, IPC_CREAT | 0600), shm = -1;
  if (sem < 0 || queue < 0) return 2;
  unsigned short values[3] = {7, 0, 3};
  if (semctl(sem, 0, SETALL, values)) return 2;
  struct { long type; char text[40]; } m = {5, "first"};
  if (msgsnd(queue, &m, 6, 0)) return 2;
  m.type = 9, strcpy(m.text, "the second message");
  if (msgsnd(queue, &m, 19, 0)) return 2;
  unsigned long *mem = 0;
  if (words) {
    shm = shmget(0x77, words * 8, IPC_CREAT | 0600);
    if (shm < 0 || (mem = shmat(shm, 0, 0)) == (void *)-1) return 2;
    for (size_t i = 0; i < words; i++) mem[i] = mix(i);
  }
  signal(SIGTERM, on_term);
  for (int last = 0; !last; rounds++) {
    last = stop;
    unsigned short now[3];
    struct semid_ds ds;
    if (semget(0x1234, 3, 0) != sem) fail("semaphores have another number");
    if (semctl(sem, 0, GETALL, now) || memcmp(now, values, sizeof now)) fail("semaphores");
    if (semctl(sem, 0, IPC_STAT, &ds) || ds.sem_perm.mode != 0640) fail("mode of semaphores");
    struct sembuf down = {0, -1, 0}, up = {0, 1, 0};
    if (semop(sem, &down, 1) || semop(sem, &up, 1)) fail("semop");
    struct msqid_ds qs;
    if (msgget(0x4321, 0) != queue || msgctl(queue, IPC_STAT, &qs) || qs.msg_qnum != 2) fail("queue");
    for (size_t i = rounds * 1021 % 4096, n = 0; words && n < words / 4096 + 2; n++, i += 4096)
      if (i < words && mem[i] != mix(i)) fail("shared memory");
    if (rounds % 16 == 0) say("run");
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, 0);
  }
  if (msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT) != 6 || m.type != 5 || strcmp(m.text, "first")) fail("first message");
  if (msgrcv(queue, &m, sizeof m.text, 0, IPC_NOWAIT) != 19 || m.type != 9 || strcmp(m.text, "the second message")) fail("second message");
  for (size_t i = 0; i < words; i++)
    if (mem[i] != mix(i)) fail("shared memory at the end");
  if (words && (shmdt(mem) || shmctl(shm, IPC_RMID, 0))) fail("shmdt");
  say("OK");
  return 0;
}
