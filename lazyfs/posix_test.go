package lazyfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/lazymig/lazymig/internal/fsmodel"
)

func TestPosix(t *testing.T) {
	for name, fn := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			continue // locks the source's file and expects to see that here: locks are the target's own (TestLocksAreLocal)
		}
		t.Run(name, func(t *testing.T) { fn(t, newRig(t, true).mnt) })
	}
}

func TestReadWrite(t *testing.T) {
	r := newRig(t, true)
	if err := os.WriteFile(filepath.Join(r.mnt, "x"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(r.src, "x"))
	if err != nil || string(b) != "hello" {
		t.Fatalf("source has %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(r.mnt, "x")); err != nil || string(b) != "hello" {
		t.Fatalf("mount has %q, %v", b, err)
	}
}

// TestTable does what a program may do by several users to the mount and to a plain directory; package store does the same when files are here.
func TestTable(t *testing.T) {
	fsmodel.KeepThread(t)
	r := newRig(t, true)
	fsmodel.Table(t, r.mnt, func() (string, string) { return r.mnt, r.src })
}
