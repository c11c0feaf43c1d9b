// core DIR: a process and its child that may dump core and have memory which they do not touch. DIR/child holds the child's PID, DIR/status later its wait status.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *name, int n) {
  FILE *f = fopen("new", "w");
  if (!f || fprintf(f, "%d\n", n) < 0 || fclose(f) || rename("new", name)) exit(3);
}

int main(int argc, char **argv) {
  struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
  int st;
  if (chdir(argv[1]) || setrlimit(RLIMIT_CORE, &all)) return 1;
  memset(malloc(512 << 10), 7, 512 << 10);
  pid_t child = fork();
  if (child) {
    say("child", child);
    if (waitpid(child, &st, 0) != child) return 2;
    say("status", st);
  }
  for (;;) pause();
}
