package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// copiesRig is a mount of some files, which come.
func copiesRig(t *testing.T, files map[string][]byte) *rig {
	t.Helper()
	r := newRig(t)
	must(t, os.Mkdir(filepath.Join(r.src, "w"), 0o755))
	for n, b := range files {
		must(t, os.WriteFile(filepath.Join(r.src, "w", n), b, 0o644))
	}
	r.move(Want{With: []string{"/w"}})
	r.here(len(files))
	return r
}

// here waits until so many copies are right.
func (r *rig) here(n int) {
	r.t.Helper()
	kerneltest.Eventually(r.t, "copies", func() bool {
		var s Status
		r.say("status", &s)
		return s.Here == n && s.Ready
	})
}

// served is how many bytes of contents the source has read or written.
func (r *rig) served() (n uint64) {
	r.t.Helper()
	r.say("bytes", &n)
	return n
}

// read opens a file anew and reads all of it from the daemon: the kernel's pages are passed by.
func (r *rig) read(name string) []byte {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.mnt, "w", name), os.O_RDONLY|unix.O_DIRECT, 0)
	must(r.t, err)
	defer f.Close()
	var all []byte
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Pread(int(f.Fd()), b, int64(len(all)))
		must(r.t, err)
		if all = append(all, b[:n]...); n == 0 {
			return all
		}
	}
}

// TestReadsCopy: what is here is not read from the source, whatever becomes of its name.
func TestReadsCopy(t *testing.T) {
	want := make([]byte, 1<<20+5)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want) // never fails
	r := copiesRig(t, map[string][]byte{"f": want, "empty": nil})
	before := r.served()
	if got := r.read("f"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, others than the source has", len(got))
	}
	if got := r.read("empty"); len(got) > 0 {
		t.Errorf("%d bytes of an empty file", len(got))
	}
	if got, err := os.ReadFile(filepath.Join(r.mnt, "w/f")); err != nil || !bytes.Equal(got, want) { // and by the kernel's pages
		t.Errorf("%d bytes, %v", len(got), err)
	}
	f, err := os.OpenFile(filepath.Join(r.mnt, "w/f"), os.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer f.Close()
	must(t, os.Rename(filepath.Join(r.mnt, "w/empty"), filepath.Join(r.mnt, "w/f")))
	r.here(2) // the one without a name, too
	b := make([]byte, 4096)
	if n, err := unix.Pread(int(f.Fd()), b, 1<<19); err != nil || !bytes.Equal(b[:n], want[1<<19:1<<19+4096]) {
		t.Errorf("unlinked: %d bytes, %v", n, err)
	}
	if after := r.served(); after != before {
		t.Errorf("%d bytes of what is here were read at the source", after-before)
	}
	w, err := os.OpenFile(filepath.Join(r.mnt, "w/f"), os.O_RDWR, 0) // empty
	must(t, err)
	defer w.Close()
	_, err = w.Write(want)
	must(t, err)
	r.here(2)
	before = r.served()
	if got := r.read("f"); !bytes.Equal(got, want) {
		t.Errorf("%d bytes while somebody may write", len(got))
	}
	if after := r.served(); after-before < uint64(len(want)) { // more where the copy is made again beside it
		t.Errorf("only %d bytes were read at the source while somebody may write", after-before)
	}
}

// TestReadsWritten changes files in all ways while their copies come and go out of date: each read sees all that was done before.
func TestReadsWritten(t *testing.T) {
	want := map[string][]byte{}
	for i := range 3 {
		want[fmt.Sprint(i)] = bytes.Repeat([]byte{byte('a' + i)}, 100_000)
	}
	r := copiesRig(t, want)
	x := rand.New(rand.NewPCG(5, 5))
	reader, err := os.OpenFile(filepath.Join(r.mnt, "w/0"), os.O_RDONLY|unix.O_DIRECT, 0) // stays open
	must(t, err)
	defer reader.Close()
	check := func(what, name string) {
		t.Helper()
		if got := r.read(name); !bytes.Equal(got, want[name]) {
			t.Fatalf("after %s: %d bytes of file %s, %d are right", what, len(got), name, len(want[name]))
		}
		b := make([]byte, 200_000)
		n, err := unix.Pread(int(reader.Fd()), b, 0)
		must(t, err)
		if !bytes.Equal(b[:n], want["0"]) {
			t.Fatalf("after %s: %d bytes by a file that was opened before, %d are right", what, n, len(want["0"]))
		}
	}
	local := 0
	for round := range 6 {
		for name := range want {
			path := filepath.Join(r.mnt, "w", name)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(t, err)
			for range 5 {
				off, n := x.IntN(len(want[name])), 1+x.IntN(5000)
				data := bytes.Repeat([]byte{byte(round + 1)}, n)
				_, err := f.WriteAt(data, int64(off))
				must(t, err)
				if off+n > len(want[name]) {
					want[name] = append(want[name], make([]byte, off+n-len(want[name]))...)
				}
				copy(want[name][off:], data)
				check("a write", name)
			}
			must(t, f.Close())
			check("the end of writing", name)
		}
		r.here(len(want))
		before := r.served()
		for name := range want {
			check("the copies' coming", name)
		}
		if r.served() == before {
			local++
		}
		for name := range want {
			size := 50_000 + x.IntN(80_000)
			must(t, os.Truncate(filepath.Join(r.mnt, "w", name), int64(size)))
			want[name] = append(want[name], make([]byte, max(0, size-len(want[name])))...)[:size]
			check("truncate", name)
		}
		if round%2 == 0 {
			r.here(len(want))
		}
	}
	if local == 0 {
		t.Error("no copy was ever read")
	}
}
