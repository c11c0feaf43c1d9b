package hot

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// toucher runs a process that uses only these pages of its memory.
func toucher(t *testing.T, mb int, pages []uint32) (p Process, base uint64) {
	t.Helper()
	src, err := os.ReadFile("testdata/toucher.c")
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, n := range pages {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	list := filepath.Join(t.TempDir(), "pages")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(kerneltest.CompileC(t, string(src)), fmt.Sprint(mb), list)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	if _, err := fmt.Fscanf(out, "0x%x\n", &base); err != nil {
		t.Fatal(err)
	}
	return Process{ID: 7, PID: cmd.Process.Pid}, base
}

// patient are options with which a busy machine ends no round early.
func patient(how string) Options {
	return Options{How: how, Time: time.Minute, Stall: time.Minute, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
}

// TestBPF: of a random twentieth of the pages, which alone are in use, nearly all are found, and hardly another.
func TestBPF(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.Need(t, kerneltest.Root)
	if k, err := openKernel(); err != nil {
		t.Skip("hot pages are found in other ways here:", err)
	} else {
		k.close()
	}
	const mb = 512 // a twentieth of it is more than a TLB holds
	all := rand.Perm(mb << 20 / pageSize)
	used := map[uint64]bool{}
	var pages []uint32
	for _, n := range all[:len(all)/20] {
		pages = append(pages, uint32(n))
	}
	p, base := toucher(t, mb, pages)
	for _, n := range pages {
		used[base+uint64(n)*pageSize] = true
	}
	r, err := Find(t.Context(), []Process{p}, patient(BPF))
	if err != nil {
		t.Fatal(err)
	}
	right, seen := 0, map[uint64]bool{}
	for _, s := range r.Spans {
		if s.Task != p.ID {
			t.Fatalf("span of task %d", s.Task)
		}
		for a := range addresses(s) {
			if seen[a] {
				t.Fatalf("%#x is listed twice", a)
			}
			if seen[a] = true; used[a] {
				right++
			}
		}
	}
	precision, recall := float64(right)/float64(max(len(seen), 1)), float64(right)/float64(len(used))
	t.Logf("%d of %d pages, %d right: precision %.3f, recall %.3f, %d rounds", len(seen), len(all), right, precision, recall, r.Rounds)
	if r.How != BPF || r.Pages != uint64(len(seen)) || precision < 0.9 || recall < 0.9 {
		t.Errorf("%s: %d pages listed, precision %.3f, recall %.3f", r.How, r.Pages, precision, recall)
	}
}

// addresses are those of a span's pages.
func addresses(s Span) func(func(uint64) bool) {
	return func(yield func(uint64) bool) {
		for w := range uint64(s.Words) {
			for i := range uint64(wordPages) {
				if s.Mask>>i&1 != 0 && !yield(s.Addr+w*wordSize+i*pageSize) {
					return
				}
			}
		}
	}
}

// TestSmaps: the mapping that is in use is listed, with all its pages.
func TestSmaps(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.Need(t, kerneltest.Root)
	const mb = 16
	pages := make([]uint32, mb<<20/pageSize)
	for i := range pages {
		pages[i] = uint32(i)
	}
	p, base := toucher(t, mb, pages)
	var found bool
	// On a busy machine it may not have run between the two looks.
	kerneltest.Eventually(t, "the mapping to be listed", func() bool {
		r, err := Find(t.Context(), []Process{p}, patient(Smaps))
		if err != nil {
			t.Fatal(err)
		}
		listed := map[uint64]bool{}
		for _, s := range r.Spans {
			for a := range addresses(s) {
				listed[a] = true
			}
		}
		found = true
		for i := range pages {
			found = found && listed[base+uint64(i)*pageSize]
		}
		return found && r.How == Smaps && r.Pages == uint64(len(listed))
	})
}

// TestFallback: what does not work is passed over, in this order, and the reason is told.
func TestFallback(t *testing.T) {
	kerneltest.Leaks(t)
	broken := errors.New("broken")
	writes := func(_ context.Context, s *Scores) (uint64, error) {
		s.Add(1, 4*pageSize, 2)
		s.Round(2, 100)
		return 100, nil
	}
	for _, c := range []struct {
		name, how, want string
		fail            []string
		writes          func(context.Context, *Scores) (uint64, error)
		err             bool
	}{
		{name: "no BPF", fail: []string{BPF}, want: WP, writes: writes},
		{name: "no BPF, no tracking", fail: []string{BPF}, want: Smaps},
		{name: "no BPF, tracking fails", fail: []string{BPF, WP}, want: Smaps, writes: writes},
		{name: "nothing", fail: []string{BPF, WP, Smaps}, want: Off, writes: writes},
		{name: "BPF asked for", how: BPF, fail: []string{BPF}, want: Off, err: true},
		{name: "tracking asked for, and there is none", how: WP, want: Off, err: true},
		{name: "off", how: Off, want: Off},
		{name: "nonsense", how: "cold", want: Off, err: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := patient(c.how)
			o.Time, o.Writes, o.fail = time.Millisecond, c.writes, map[string]error{}
			for _, f := range c.fail {
				o.fail[f] = broken
			}
			r, err := Find(t.Context(), nil, o)
			if r.How != c.want || (err != nil) != c.err {
				t.Errorf("%q, %v instead of %q", r.How, err, c.want)
			}
			if len(c.fail) > 0 && err == nil && r.Why == "" {
				t.Error("nothing is said about why")
			}
			if c.want == WP && !slices.Equal(r.Spans, []Span{{Task: 1, Addr: 0, Words: 1, Mask: 0x30}}) {
				t.Errorf("spans %v", r.Spans)
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(io.EOF)
	if _, err := Find(ctx, nil, patient(Auto)); !errors.Is(err, io.EOF) {
		t.Errorf("given up: %v", err)
	}
}

// TestLarge: memory whose bits take too long to clear is left alone.
func TestLarge(t *testing.T) {
	if err := affordable(nil); err != nil {
		t.Error(err)
	}
	var many []Process
	for sum := uint64(0); sum <= uint64(costly/perGB+8)*gigabyte; sum += resident(os.Getpid()) {
		if many = append(many, Process{PID: os.Getpid()}); len(many) > 1<<16 {
			t.Fatal("this process has no memory")
		}
	}
	if err := affordable(many); !errors.Is(err, errLarge) {
		t.Errorf("%d processes: %v", len(many), err)
	}
}
