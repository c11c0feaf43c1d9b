package migrate

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPosixLocks(t *testing.T) {
	got, err := posixLocks(strings.NewReader("pos:\t0\nflags:\t0100002\nlock:\t1: POSIX  ADVISORY  WRITE 12 08:01:99 0 EOF\n" +
		"lock:\t2: FLOCK  ADVISORY  WRITE 12 08:01:99 0 EOF\nlock:\t3: POSIX  ADVISORY  READ 12 08:01:99 100 149\nlock:\t4: OFDLCK ADVISORY  READ -1 08:01:99 1 2\n"))
	want := []unix.Flock_t{{Type: unix.F_WRLCK}, {Type: unix.F_RDLCK, Start: 100, Len: 50}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Fatalf("%+v, %v", got, err)
	}
}

// What the kernel shows of our own locks is read, and taken again when they are gone; what somebody else has then is told.
func TestRetake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	open := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	f, other := open(), open()
	lk := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 20}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	info, err := os.Open(filepath.Join("/proc/self/fdinfo", filepath.Base(fdPath(f))))
	if err != nil {
		t.Fatal(err)
	}
	defer info.Close()
	got, err := posixLocks(info)
	if err != nil || len(got) != 1 || got[0].Start != 10 || got[0].Len != 20 || got[0].Type != unix.F_WRLCK {
		t.Fatalf("%+v, %v", got, err)
	}
	un := unix.Flock_t{Type: unix.F_UNLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &un); err != nil { // as the death of its owner does
		t.Fatal(err)
	}
	mine := []posixLock{{f, got[0]}}
	if err := retake(mine); err != nil {
		t.Fatal(err)
	}
	overlap := unix.Flock_t{Type: unix.F_WRLCK, Start: 29, Len: 1}
	if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_SETLK, &overlap); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("the lock is not held: %v", err)
	}
	if err := retake([]posixLock{{other, got[0]}}); !errors.Is(err, unix.EAGAIN) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a conflict is told as %v", err)
	}
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
