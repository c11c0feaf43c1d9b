package dump

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/wire"
)

// TestSharedObjects: large anonymous shared memory is hidden in all that share it; what one of them has locked, what is small, and what has a
// name is not, and why is told.
func TestSharedObjects(t *testing.T) {
	need(t)
	cmd := program(t, `
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static char *share(size_t n) {
	char *p = mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) _exit(1);
	memset(p, 1, n);
	return p;
}
int main(void) {
	char *big = share(4 << 20), *locked = share(2 << 20);
	share(64 << 10);
	int fd = memfd_create("named", 0);
	if (ftruncate(fd, 2 << 20) || mmap(0, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED) return 2;
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
	if len(r.Objects) != 1 || r.Objects[0].Size != 4<<20 || r.Objects[0].ID != ObjectBit || r.Objects[0].Bytes != 4<<20 {
		t.Fatalf("objects: %+v", r.Objects)
	}
	if e := strings.Join(r.Eager, "\n"); len(r.Eager) != 2 || !strings.Contains(e, "lo") || !strings.Contains(e, "/memfd:named") {
		t.Errorf("eager: %q", r.Eager)
	}
	f, err := r.Objects[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, task := range r.Tasks {
		if len(task.Shared) != 3 || task.Shared[0].Offset != 0 || task.Shared[2].Offset != 2<<20+4096 || task.Shared[2].Object != r.Objects[0].ID {
			t.Errorf("shared ranges of task %d: %+v", task.ID, task.Shared)
		}
		vmas, err := images.VMAs(r.ImagesDir, task.ID)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, v := range vmas {
			if v.Object == r.Objects[0].Inode {
				n++
			}
		}
		if n != 3 {
			t.Errorf("%d mappings of the object in the image of task %d", n, task.ID)
		}
	}
	if fi, err := os.Stat(filepath.Join(r.ImagesDir, fmt.Sprintf("pagemap-shmem-%d.img", r.Objects[0].Inode))); err != nil || fi.Size() > 64 {
		t.Errorf("image of the object: %v, %v", fi, err)
	}
	if err := images.Validate(r.ImagesDir); err != nil {
		t.Error(err)
	}
}
