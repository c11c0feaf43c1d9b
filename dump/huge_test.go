package dump

import (
	"slices"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/wire"
)

// TestHuge: where a process has transparent huge pages is told, whole ones of memory that is hidden.
func TestHuge(t *testing.T) {
	need(t)
	if !pagemap.Probe().Scan {
		kerneltest.Skip(t, "no PAGEMAP_SCAN, Linux 6.7")
	}
	cmd := program(t, `
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
enum { H = 2 << 20 };
int main(void) {
	char *p = mmap((void *)0x7000000ff000, 9 * H, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	char *h = (void *)(((uintptr_t)p + H - 1) / H * H);
	memset(p, 1, 9 * H);
	munmap(h + 2 * H, 4096), munmap(h + 6 * H, 4096);
	for (int i = 0; i < 6; i++)
		while (i != 2 && madvise(h + i * H, H, 25)) usleep(1000); // MADV_COLLAPSE
	write(1, "", 1);
	for (;;) pause();
}`)
	d := prepare(t, Options{PID: cmd.Process.Pid, ID: wire.NewID()})
	r, err := d.Freeze(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	const first = 0x700000200000 / HugeSize
	for _, h := range []HugeRange{{first, 2}, {first + 3, 3}} {
		if !slices.Contains(r.Tasks[0].Huge, h) {
			t.Errorf("huge pages: %+v, not %+v", r.Tasks[0].Huge, h)
		}
	}
}
