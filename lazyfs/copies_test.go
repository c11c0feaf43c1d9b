package lazyfs

import (
	"os"
	"path/filepath"
	"testing"
)

// shelf has a copy of each node that is the node's number.
type shelf struct {
	Watcher
	dir   string
	wrong map[uint64]bool
}

func (s *shelf) Right(node uint64) bool { return !s.wrong[node] }

func (s *shelf) Copy(uint64) *os.File {
	f, err := os.Open(filepath.Join(s.dir, "copy"))
	if err != nil {
		return nil
	}
	return f
}

// TestCopies: a copy is read as long as it is right, never while the size of its file is being set, and only so many are open.
func TestCopies(t *testing.T) {
	s := &shelf{dir: t.TempDir(), wrong: map[uint64]bool{}}
	write(t, filepath.Join(s.dir, "copy"), "contents")
	var c copies
	reads := func(node uint64, want bool) {
		t.Helper()
		b := make([]byte, 20)
		n, ok := c.read(node, b, 3)
		if ok != want || want && string(b[:n]) != "tents" {
			t.Errorf("node %d: %q, %v", node, b[:n], ok)
		}
	}
	reads(1, false)
	c.cutting(1)()
	c.use(s)
	reads(1, true)
	one, two := c.cutting(1), c.cutting(1)
	reads(1, false)
	one()
	reads(1, false)
	reads(2, true)
	two()
	reads(1, true)
	s.wrong[1] = true
	reads(1, false)
	if len(c.files) != 1 || len(c.order) != 1 {
		t.Errorf("%d copies are open", len(c.files))
	}
	s.wrong[1] = false
	for n := range uint64(maxCopies + 10) {
		reads(n, true)
	}
	if len(c.files) != maxCopies || len(c.order) != maxCopies {
		t.Errorf("%d copies are open", len(c.files))
	}
	c.forgot(maxCopies)
	must(t, os.Remove(filepath.Join(s.dir, "copy")))
	reads(maxCopies, false)
	c.close()
	reads(maxCopies+1, false)
}
