package lazyfs

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func tm(sec int64) time.Time { return time.Unix(sec, 0) }

// TestBigDirectory reads many names while they are removed: each of those that stay is told once.
func TestBigDirectory(t *testing.T) {
	const total = 20000
	r := newRig(t, true)
	for i := range total {
		f, err := os.Create(filepath.Join(r.src, fmt.Sprintf("name-%05d", i)))
		must(t, err)
		must(t, f.Close())
	}
	for _, stat := range []bool{false, true} {
		d := mustOpen(t, r.mnt)
		seen := map[string]int{}
		for {
			list, err := d.ReadDir(300)
			if len(list) == 0 {
				break
			}
			must(t, err)
			for i, e := range list {
				seen[e.Name()]++
				if stat {
					if _, err := e.Info(); err != nil {
						t.Fatal(err)
					}
				}
				if i%100 == 0 { // one of those just told
					must(t, os.Remove(filepath.Join(r.mnt, e.Name())))
				}
			}
		}
		left, err := os.ReadDir(r.src)
		must(t, err)
		for _, e := range left {
			if seen[e.Name()] != 1 {
				t.Fatalf("%s was told %d times", e.Name(), seen[e.Name()])
			}
		}
		if len(seen) < len(left) {
			t.Fatalf("%d names told, %d left", len(seen), len(left))
		}
	}
}

// TestListedAttributes: what a directory listing brought ahead must not hide what was written since.
func TestListedAttributes(t *testing.T) {
	r := newRig(t, true)
	for i := range 500 {
		write(t, filepath.Join(r.src, fmt.Sprintf("f%03d", i)), "x")
	}
	d := mustOpen(t, r.mnt)
	for round := 0; ; round++ {
		list, err := d.ReadDir(20)
		if len(list) == 0 {
			break
		}
		must(t, err)
		for i := range 500 {
			if i%7 == round%7 {
				f, err := os.OpenFile(filepath.Join(r.mnt, fmt.Sprintf("f%03d", i)), os.O_APPEND|os.O_WRONLY, 0)
				must(t, err)
				_, err = f.WriteString("y")
				must(t, err)
				must(t, f.Close())
			}
		}
		for _, e := range list {
			_, err := e.Info()
			must(t, err)
		}
	}
	for i := range 500 {
		n := fmt.Sprintf("f%03d", i)
		a, err := os.Stat(filepath.Join(r.src, n))
		must(t, err)
		b, err := os.Stat(filepath.Join(r.mnt, n))
		must(t, err)
		x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
		if x.Size != y.Size || x.Mtim != y.Mtim || x.Ino != y.Ino {
			t.Fatalf("%s: source %+v, mount %+v", n, x, y)
		}
	}
}

// TestOwnChangesAreSeen: an hour of validity must not hide what the tree did itself.
func TestOwnChangesAreSeen(t *testing.T) {
	r := newRig(t, true)
	same := func(p string) {
		t.Helper()
		a, err := os.Lstat(filepath.Join(r.src, p))
		must(t, err)
		b, err := os.Lstat(filepath.Join(r.mnt, p))
		must(t, err)
		x, y := *a.Sys().(*syscall.Stat_t), *b.Sys().(*syscall.Stat_t)
		x.Dev, y.Dev, x.Atim = 0, 0, y.Atim
		x.Blksize = y.Blksize
		if x != y {
			t.Fatalf("%s:\nsource %+v\nmount  %+v", p, x, y)
		}
	}
	d := mkdir(t, r.mnt, "d")
	same("d")
	gone(t, filepath.Join(d, "f"))
	write(t, filepath.Join(d, "f"), "1")
	same("d")
	same("d/f")
	mkdir(t, d, "e")
	same("d")
	must(t, os.Rename(filepath.Join(d, "f"), filepath.Join(d, "e/f")))
	same("d")
	same("d/e")
	same("d/e/f")
	gone(t, filepath.Join(d, "f"))
	must(t, os.Link(filepath.Join(d, "e/f"), filepath.Join(d, "g")))
	same("d/g")
	same("d/e/f")
	must(t, os.Truncate(filepath.Join(d, "g"), 100))
	same("d/e/f")
	must(t, os.Remove(filepath.Join(d, "e/f")))
	same("d/g")
	same("d/e")
	must(t, os.Chtimes(filepath.Join(d, "g"), tm(5), tm(6)))
	same("d/g")
	must(t, os.Remove(filepath.Join(d, "e")))
	same("d")
	must(t, os.Chmod(d, 0o700))
	same("d")
}
