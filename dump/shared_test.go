package dump

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/wire"
)

// TestSharedObjects: large shared memory, anonymous or a memfd's, is hidden in all that share it; what one of them has locked, open, mapped privately or sealed, and
// what is small, is not, and why is told.
func TestSharedObjects(t *testing.T) {
	need(t)
	cmd := program(t, `
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static int named(const char *name, size_t n, int flags) {
	int fd = memfd_create(name, MFD_ALLOW_SEALING);
	if (ftruncate(fd, n) || mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED) _exit(2);
	if (flags && mmap(0, 4096, PROT_READ, flags, fd, 0) == MAP_FAILED) _exit(2);
	return fd;
}
static char *share(size_t n) {
	char *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) _exit(1);
	memset(p, 1, n);
	return p;
}
int main(void) {
	char *big = share(4 << 20), *locked = share(2 << 20);
	share(64 << 10);
	named("open", 2 << 20, 0);
	close(named("private", 2 << 20, MAP_PRIVATE));
	close(named("behind", (1 << 20) + 1, 0));
	int fd = named("sealed", 2 << 20, 0);
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)) return 4;
	close(fd);
	close(named("closed", 3 << 20, MAP_SHARED));
	munmap(big + (2 << 20), 4096);
	mprotect(big, 4096, PROT_READ);
	if (!fork()) {
		if (mlock(locked, 4096)) return 3;
		write(1, "", 1);
	}
	for (;;) pause();
}`)
	t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	d := prepare(t, Options{PID: cmd.Process.Pid, ID: wire.NewID()})
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Objects) != 2 {
		t.Fatalf("objects: %+v", r.Objects)
	}
	anon, memfd := r.Objects[0], r.Objects[1]
	if anon.ID != ObjectBit || memfd.ID != ObjectBit|1 {
		t.Errorf("numbers of objects: %#x, %#x", anon.ID, memfd.ID)
	}
	if anon.name != "" { // they are in order of inodes
		anon, memfd = memfd, anon
	}
	if anon.Size != 4<<20 || anon.Bytes != 4<<20 || memfd.Size != 3<<20 || memfd.Bytes != 0 || memfd.name != "closed" {
		t.Errorf("objects: %+v", r.Objects)
	}
	if len(r.Eager) != 5 {
		t.Errorf("eager: %q", r.Eager)
	}
	for _, why := range []string{"lo", "open as descriptor", "/memfd:private (deleted) at", "memfd behind behind its end", "memfd sealed"} {
		if !strings.Contains(strings.Join(r.Eager, "\n"), why) {
			t.Errorf("eager: %q: not %q", r.Eager, why)
		}
	}
	f, err := anon.Open()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, task := range r.Tasks {
		ranges := map[uint32][]SharedRange{}
		for _, s := range task.Shared {
			ranges[s.Object] = append(ranges[s.Object], s)
		}
		if a := ranges[anon.ID]; len(a) != 3 || a[0].Offset != 0 || a[2].Offset != 2<<20+4096 || len(ranges[memfd.ID]) != 2 {
			t.Errorf("shared ranges of task %d: %+v", task.ID, task.Shared)
		}
		vmas, err := images.VMAs(r.ImagesDir, task.ID)
		if err != nil {
			t.Fatal(err)
		}
		n, memfds := 0, 0
		for _, v := range vmas {
			switch {
			case v.Object == anon.Inode:
				n++
			case v.Status&images.StatusMemfd == images.StatusMemfd && v.Object == uint64(memfd.file):
				memfds++
			}
		}
		if n != 3 || memfds != 2 {
			t.Errorf("%d mappings of the anonymous object and %d of the memfd in the image of task %d", n, memfds, task.ID)
		}
	}
	if fi, err := os.Stat(filepath.Join(r.ImagesDir, fmt.Sprintf("pagemap-shmem-%d.img", anon.Inode))); err != nil || fi.Size() > 64 {
		t.Errorf("image of the object: %v, %v", fi, err)
	}
	if err := images.Validate(r.ImagesDir); err != nil {
		t.Error(err)
	}
}

// TestSharedInFlight: a memfd that is mapped and not open, but on its way to somebody through a socket, would be two after a restore.
func TestSharedInFlight(t *testing.T) {
	need(t)
	cmd := program(t, `
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
	int fd = memfd_create("sent", 0), s[2];
	if (ftruncate(fd, 2 << 20) || mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED) return 2;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, s)) return 3;
	struct iovec v = {"x", 1};
	char c[CMSG_SPACE(4)] = {0};
	struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = c, .msg_controllen = sizeof c};
	struct cmsghdr *q = CMSG_FIRSTHDR(&h);
	q->cmsg_level = SOL_SOCKET, q->cmsg_type = SCM_RIGHTS, q->cmsg_len = CMSG_LEN(4);
	memcpy(CMSG_DATA(q), &fd, 4);
	if (sendmsg(s[0], &h, 0) < 0) return 4;
	close(fd);
	write(1, "", 1);
	for (;;) pause();
}`)
	d := prepare(t, Options{PID: cmd.Process.Pid, ID: wire.NewID()})
	r, err := d.Freeze(testContext(t))
	if !errors.Is(err, ErrChanged) {
		t.Errorf("freeze: %+v, %v", r, err)
	}
}
