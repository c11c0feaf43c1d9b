//go:build powercut

package migrate

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestPowerCut: each entry of a record is there after the host's power has failed the moment after Enter returned. The file system is a real one, of a
// loop device; EXT4_IOC_SHUTDOWN (fs/ext4/ioctl.c) ends it without writing another byte, its journal included.
func TestPowerCut(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.Need(t, kerneltest.Root)
	for _, side := range []Side{SideSource, SideTarget} {
		for _, last := range []State{Prepare, Frozen, Granted, Resumed} {
			t.Run(string(side)+" "+string(last), func(t *testing.T) { powerCut(t, side, last) })
		}
	}
}

func powerCut(t *testing.T, side Side, last State) {
	img, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	run("truncate", "-s", "16M", img)
	run("mkfs.ext4", "-q", "-F", img)
	run("mount", "-o", "loop", img, dir)
	mounted := true
	defer func() {
		if mounted {
			_ = unix.Unmount(dir, 0) // the test has failed
		}
	}()
	r := newRecord(t, filepath.Join(dir, "state"), side)
	for _, s := range []State{Prepare, Frozen, Granted, Resumed} {
		if s != Prepare {
			enter(t, r, s)
		}
		if s == last {
			break
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
	err = unix.IoctlSetPointerInt(int(d.Fd()), shutdown, noLogFlush)
	d.Close()
	r.Close()
	if err != nil {
		t.Fatalf("cut the power: %v", err)
	}
	run("umount", dir)
	mounted = false
	run("mount", "-o", "loop", img, dir)
	mounted = true
	k, err := find(filepath.Join(dir, "state"), r.ID, side)
	if err != nil || k.Last().State != last {
		t.Errorf("after the power cut the record says %q, %v; it was told that %q is on the disk", k.Last().State, err, last)
	}
	run("umount", dir)
	mounted = false
}
