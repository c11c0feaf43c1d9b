package lazyfs

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestOpenWaitsForNothing: a file or directory that is known is opened for reading without a round trip, and what is read is that file, whatever becomes of its names.
func TestOpenWaitsForNothing(t *testing.T) {
	r := newRigWith(t, true, helperConf{Src: t.TempDir(), Store: t.TempDir(), Plugs: true})
	mkdir(t, r.src, "d")
	write(t, filepath.Join(r.src, "d/f"), "contents")
	write(t, filepath.Join(r.src, "other"), "other")
	p := filepath.Join(r.mnt, "d/f")
	for _, p := range []string{p, filepath.Join(r.mnt, "other")} {
		if _, err := os.Lstat(p); err != nil {
			t.Fatal(err)
		}
	}
	r.say("unplug", "unplugged")
	before := r.say("waited", "waited")
	f, g, d := mustOpen(t, p), mustOpen(t, p), mustOpen(t, filepath.Dir(p))
	wantErr(t, "open", firstErr(os.OpenFile(p, os.O_RDONLY|unix.O_DIRECTORY, 0)), unix.ENOTDIR)
	r.say("plug", "plugged")
	if after := r.say("waited", "waited"); after != before {
		t.Errorf("%s, then %s", before, after)
	}
	must(t, os.Rename(filepath.Join(r.mnt, "other"), p))
	must(t, os.Remove(p))
	for _, x := range []*os.File{f, g} {
		if b, err := io.ReadAll(x); err != nil || string(b) != "contents" {
			t.Errorf("%q, %v", b, err)
		}
		must(t, x.Close())
	}
	if l, err := d.Readdirnames(-1); err != nil || len(l) != 0 {
		t.Errorf("directory has %q, %v", l, err)
	}
	must(t, d.Close())
	r.closed()
}

// closed waits until the source has no handle: that a file is closed is told in the kernel's own time.
func (r *rig) closed() {
	r.t.Helper()
	kerneltest.Eventually(r.t, "all handles closed", func() bool { return strings.Contains(r.say("stats", "nodes"), "handles 0") })
}

func firstErr(_ *os.File, err error) error { return err }

// TestOpenLost: the daemon is killed when it has answered an open that the source will never hear of.
func TestOpenLost(t *testing.T) {
	r := newApart(t, true)
	mkdir(t, r.src, "d")
	write(t, filepath.Join(r.src, "d/f"), "contents")
	write(t, filepath.Join(r.src, "g"), "more")
	at := func(n string) string { return filepath.Join(r.mnt, n) }
	for _, n := range []string{"d/f", "g"} {
		if _, err := os.Lstat(at(n)); err != nil {
			t.Fatal(err)
		}
		r.say("park lose", "armed")
		f := mustOpen(t, at(n))
		must(t, os.Remove(at(n)))
		r.say("kill", "killed")
		if b, err := io.ReadAll(f); err != nil || len(b) == 0 {
			t.Errorf("%s: %q, %v", n, b, err)
		}
		must(t, f.Close())
	}
	r.say("park lose", "armed")
	d := mustOpen(t, at("d"))
	r.say("kill", "killed")
	write(t, filepath.Join(r.src, "d/x"), "")
	if l, err := d.Readdirnames(-1); err != nil || len(l) != 1 {
		t.Errorf("directory has %q, %v", l, err)
	}
	must(t, d.Close())
	r.closed()
}
