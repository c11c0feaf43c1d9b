package lab

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// stuckFUSE serves a file system whose daemon asks itself: one thread waits for
// an answer that the other has read and will not give. No signal ends it.
const stuckFUSE = `
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static void *ask(void *arg) {
  struct stat st;
  stat("/mnt/file", &st);
  puts("answered");
  return 0;
}

int main(void) {
  char opts[80], buf[1 << 17];
  int fd = open("/dev/fuse", O_RDWR);
  sprintf(opts, "fd=%d,rootmode=40000,user_id=0,group_id=0", fd);
  if (mount("stuck", "/mnt", "fuse", 0, opts)) { perror("mount"); return 1; }
  struct fuse_in_header *in = (void *)buf;
  if (read(fd, buf, sizeof buf) < 0 || in->opcode != FUSE_INIT) { perror("init"); return 1; }
  struct { struct fuse_out_header h; struct fuse_init_out o; } out;
  memset(&out, 0, sizeof out);
  out.h.len = sizeof out;
  out.h.unique = in->unique;
  out.o.major = FUSE_KERNEL_VERSION;
  out.o.minor = FUSE_KERNEL_MINOR_VERSION;
  out.o.max_write = 4096;
  if (write(fd, &out, sizeof out) < 0) { perror("answer"); return 1; }
  pthread_t t;
  pthread_create(&t, 0, ask, 0);
  if (read(fd, buf, sizeof buf) < 0) { perror("request"); return 1; }
  puts("stuck");
  fflush(stdout);
  pthread_join(t, 0);
  return 0;
}
`

func TestPowerOffWithStuckFUSE(t *testing.T) {
	kerneltest.Need(t, kerneltest.FUSE)
	prog := kerneltest.CompileC(t, stuckFUSE)
	l := up(t, Options{Share: []string{filepath.Dir(prog)}})
	for _, h := range []*Host{l.A, l.B} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		// In a PID and mount namespace of its own, as a capsule is.
		p := spawnOn(t, h, Spawn{
			Args:  []string{"unshare", "--mount", "--pid", "--fork", prog},
			Files: []*os.File{nil, w, w},
		})
		w.Close()
		if line, err := bufio.NewReader(r).ReadString('\n'); line != "stuck\n" {
			t.Fatalf("daemon says %q, %v", line, err)
		}
		outer, err := h.OuterPid(p.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Kill(); err != nil {
			t.Error(err)
		}
		if err := unix.Kill(outer, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process of %s after the kill: %v", h.Name, err)
		}
	}
}
