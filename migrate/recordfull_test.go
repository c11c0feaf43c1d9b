package migrate

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// fullRecord is a record in a file system that has room for half of one more entry, and a file that fills it.
func fullRecord(t *testing.T) (r *Record, path, filler string) {
	t.Helper()
	kerneltest.Need(t, kerneltest.Root)
	kerneltest.Leaks(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	r, err := NewRecord(dir, wire.NewID(), Entry{State: Prepare, Side: SideSource})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	path = filepath.Join(r.Dir, "record")
	// The file's first page ends 110 bytes behind the entry: less than the next one needs.
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	probe := len(st.Name()) // any note: its length is what matters
	if err := r.Enter(Frozen, string(bytes.Repeat([]byte("n"), probe))); err != nil {
		t.Fatal(err)
	}
	long, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	entry := int(long.Size()-st.Size()) - probe
	if err := r.Withdraw(); err != nil {
		t.Fatal(err)
	}
	if err := r.Enter(Frozen, string(bytes.Repeat([]byte("n"), os.Getpagesize()-110-int(st.Size())-entry))); err != nil {
		t.Fatal(err)
	}
	filler = filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill file system: %v", err)
	}
	return r, path, filler
}

// TestRecordFull: an entry for which the disk has not room enough leaves no half of it behind, least of all the keeper's mark.
func TestRecordFull(t *testing.T) {
	r, path, filler := fullRecord(t)
	if err := r.Enter(Granted, ""); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("enter granted on a full disk: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil || bytes.Contains(b, []byte(grantMark)) || !bytes.HasSuffix(b, []byte("\n")) {
		t.Errorf("half an entry is left: %v, ends with %q", err, b[max(0, len(b)-150):])
	}
	if err := r.Sure(); err != nil || r.Last().State != Frozen {
		t.Errorf("last is %s, %v", r.Last().State, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	enter(t, r, Aborted)
	if all, err := readRecord(path); err != nil || len(all) != 3 || all[2].State != Aborted {
		t.Errorf("the record reads %v, %v", all, err)
	}
}

// TestRecordUnsure: while a failed entry can't be taken out of the file, nothing else is written and nobody may trust it.
func TestRecordUnsure(t *testing.T) {
	r := newRecord(t, t.TempDir(), SideSource)
	enter(t, r, Frozen)
	whole := r.f
	bad, err := os.Open(filepath.Join(r.Dir, "record")) // neither writes nor truncates
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Close()
	r.f = bad
	if err := r.Enter(Granted, ""); err == nil {
		t.Fatal("written to a file that is open for reading")
	}
	if r.Sure() == nil || r.Enter(Aborted, "") == nil || r.Last().State != Frozen {
		t.Errorf("a record that may hold more is trusted; last is %s", r.Last().State)
	}
	r.f = whole
	if err := r.Sure(); err != nil {
		t.Fatal(err)
	}
	enter(t, r, Granted)
	if err := r.Withdraw(); err != nil || r.Last().State != Frozen {
		t.Fatalf("last is %s, %v", r.Last().State, err)
	}
	enter(t, r, Aborted)
	if all, err := readRecord(filepath.Join(r.Dir, "record")); err != nil || len(all) != 3 || all[2].State != Aborted {
		t.Errorf("the record reads %v, %v", all, err)
	}
}
