package dump

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// BenchmarkFreeze shows that a freeze does not grow with memory: ms/freeze is from the freeze to the complete images,
// ms/check what Check takes then, which runs beside the transfer and the restore.
func BenchmarkFreeze(b *testing.B) {
	kerneltest.Need(b, kerneltest.Root, kerneltest.CRIU, kerneltest.CgroupFreezer, kerneltest.GCC)
	for _, mb := range []int{64, 512, 2048} { // of small pages
		b.Run(fmt.Sprintf("%dMB", mb), func(b *testing.B) {
			bin := kerneltest.CompileC(b, `#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int c, char **v) {
	close_range(3, ~0U, 0);
	size_t n = atol(v[1]) << 20;
	char *p = malloc(n);
	madvise(p, n, c > 2 ? MADV_NOHUGEPAGE : MADV_NORMAL);
	memset(p, 1, n);
	write(1, "x", 1);
	for (;;) pause();
}`, "-D_GNU_SOURCE")
			cmd := exec.Command("setsid", "sh", "-c", `exec "$0" "$1" small </dev/null 2>/dev/null`, bin, fmt.Sprint(mb))
			out, err := cmd.StdoutPipe()
			if err != nil {
				b.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			if _, err := out.Read(make([]byte, 1)); err != nil {
				b.Fatal(err)
			}
			total, check, n, again := 0.0, 0.0, 0, 0
			log := slog.New(slog.DiscardHandler)
			if testing.Verbose() {
				log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			for b.Loop() {
				d, err := Prepare(context.Background(), Options{PID: cmd.Process.Pid, ID: wire.NewID(), Log: log})
				if err != nil {
					b.Fatal(err)
				}
				r, err := d.Freeze(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				again += r.Again
				total += r.DumpMS
				began := time.Now()
				if err := d.Check(); err != nil {
					b.Fatal(err)
				}
				check += float64(time.Since(began)) / float64(time.Millisecond)
				n++
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(again)/float64(n), "again/freeze")
			b.ReportMetric(check/float64(n), "ms/check")
			b.ReportMetric(total/float64(n), "ms/freeze")
		})
	}
}
