package migrate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestConnectionNumberReused: the number of a FUSE connection that is gone may be another's.
func TestConnectionNumberReused(t *testing.T) {
	kerneltest.Leaks(t)
	dir := t.TempDir()
	own, other := filepath.Join(dir, "59"), filepath.Join(dir, "60")
	for _, p := range []string{own, other} { // both at once, so that they have two inodes
		if err := os.Mkdir(p, 0o500); err != nil {
			t.Fatal(err)
		}
	}
	c := findConnection(dir, 59)
	if !c.held(0) {
		t.Error("a connection that is there is not held")
	}
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	if c.held(0) {
		t.Error("a connection that is gone is held")
	}
	if err := os.Rename(other, own); err != nil {
		t.Fatal(err)
	}
	if c.held(0) {
		t.Error("another's connection with the number of one that is gone is held")
	}
	if c = findConnection(dir, 61); c.held(0) {
		t.Error("what never was is held")
	}
}
