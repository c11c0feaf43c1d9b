package migrate

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore/detach"
)

// tree is what lies below a directory: path, kind and contents, one a line.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		b.WriteString(rel)
		if err == nil && e.Type().IsRegular() {
			var c []byte
			c, err = os.ReadFile(p)
			b.WriteString("=" + string(c))
		}
		b.WriteString("\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// placing is a target whose store and whose host's own files lie side by side in one directory.
func placing(t *testing.T, with ...string) (tgt *Target, host string) {
	t.Helper()
	dir := t.TempDir()
	host = filepath.Join(dir, "host")
	tgt = &Target{rec: &Record{Dir: filepath.Join(dir, "state", "id.target")}, log: slog.New(slog.DiscardHandler)}
	tgt.msg.InPlace = true
	write := func(p, c string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(c), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for p, c := range map[string]string{"app/data": "moved", "app/in/x": "x", "deep/er/new/file": "new", "single": "one"} {
		write(tgt.copyOf(filepath.Join(host, p)), c)
	}
	write(filepath.Join(host, "app/data"), "own")
	write(filepath.Join(host, "app/only"), "own")
	write(filepath.Join(host, "single"), "own one")
	if err := os.Chmod(tgt.copyOf(filepath.Join(host, "deep")), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, w := range with {
		tgt.msg.With = append(tgt.msg.With, filepath.Join(host, w))
	}
	return tgt, host
}

func TestPlaces(t *testing.T) {
	tgt, host := placing(t, "app", "deep/er/new", "app/in", "single", "none")
	store := tgt.copyOf(host)
	hostBefore, storeBefore := treeOf(t, host), treeOf(t, store)
	var l detach.Local
	for range 2 { // what is taken back can be done again
		l = detach.Local{Binds: []detach.Bind{{Path: "/zzz", Target: "/zzz"}}}
		if err := tgt.place(&l); err != nil {
			t.Fatal(err)
		}
		if got, want := treeOf(t, host), "app\napp/data=moved\napp/in\napp/in/x=x\ndeep\ndeep/er\ndeep/er/new\ndeep/er/new/file=new\nsingle=one\n"; got != want {
			t.Errorf("the host has\n%s, want\n%s", got, want)
		}
		if err := tgt.takeBack(); err != nil {
			t.Fatal(err)
		}
		if got := treeOf(t, host); got != hostBefore {
			t.Errorf("taken back, the host has\n%s, had\n%s", got, hostBefore)
		}
		if got := treeOf(t, store); got != storeBefore {
			t.Errorf("taken back, the store has\n%s, had\n%s", got, storeBefore)
		}
		if err := tgt.takeBack(); err != nil { // nothing is left to be done
			t.Fatal(err)
		}
	}
	l = detach.Local{Binds: []detach.Bind{{Path: "/zzz", Target: "/zzz"}}}
	if err := tgt.place(&l); err != nil {
		t.Fatal(err)
	}
	var binds []string
	for _, b := range l.Binds {
		binds = append(binds, strings.TrimPrefix(b.Path, host))
		if b.Target != b.Path {
			t.Errorf("%s is bound from %s", b.Path, b.Target)
		}
	}
	if got := strings.Join(binds, " "); got != "/app /deep/er/new /single /zzz" {
		t.Errorf("binds are %s", got)
	}
	if fi, err := os.Stat(filepath.Join(host, "deep")); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("a directory that was made is %v, %v", fi, err)
	}
	if err := tgt.finishPlaces(); err != nil {
		t.Fatal(err)
	}
	if got, want := treeOf(t, store), "app\ndeep\ndeep/er\ndeep/er/new\nsingle=own one\n"; got != want {
		t.Errorf("in the end the store has\n%s, want\n%s", got, want)
	}
	if err := tgt.takeBack(); err != nil || !strings.Contains(treeOf(t, host), "app/data=moved") {
		t.Errorf("what is finished was taken back: %v", err)
	}
}

// TestPlacesHalf has an agent that died between the record and the last rename, at each place.
func TestPlacesHalf(t *testing.T) {
	for n := range 4 {
		tgt, host := placing(t, "app", "deep/er/new", "single")
		store := tgt.copyOf(host)
		hostBefore, storeBefore := treeOf(t, host), treeOf(t, store)
		if err := tgt.place(&detach.Local{}); err != nil {
			t.Fatal(err)
		}
		all, err := tgt.readPlaces()
		if err != nil || len(all) != 3 {
			t.Fatalf("%d places, %v", len(all), err)
		}
		for _, x := range all[n:] { // which were not come to
			if err := tgt.takeBackOne(&x); err != nil {
				t.Fatal(err)
			}
		}
		if err := tgt.takeBack(); err != nil {
			t.Fatal(err)
		}
		if got := treeOf(t, host) + treeOf(t, store); got != hostBefore+storeBefore {
			t.Errorf("after %d: %s", n, got)
		}
	}
}

// TestPlaceable names what can't be put in its place.
func TestPlaceable(t *testing.T) {
	tgt, host := placing(t)
	if err := os.Symlink(host, filepath.Join(host, "link")); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		"/": "it is the target's", "/proc/x": "it is the target's", filepath.Dir(tgt.rec.Dir): "state directory is in it", host + "/link/x": "a symbolic link of the target leads there",
		host + "/new/er": "",
	} {
		if why := tgt.placeable(p); want == "" && why != "" || !strings.Contains(why, want) {
			t.Errorf("%s: %q, want %q", p, why, want)
		}
	}
	var own, other unix.Stat_t
	if unix.Stat(host, &own) == nil && unix.Stat("/dev/shm", &other) == nil && own.Dev != other.Dev {
		tgt.rec.Dir = "/dev/shm"
		if why := tgt.placeable(host + "/app"); !strings.Contains(why, "another file system") {
			t.Errorf("on another file system: %q", why)
		}
	}
	if err := tgt.place(&detach.Local{Binds: []detach.Bind{{Path: host + "/app/in"}}}); err != nil {
		t.Errorf("nothing is to be put anywhere: %v", err)
	}
	tgt.msg.With = []string{host + "/app"}
	tgt.rec.Dir = filepath.Join(filepath.Dir(host), "state", "id.target")
	if err := tgt.place(&detach.Local{Binds: []detach.Bind{{Path: host + "/app/in"}}}); err == nil || !strings.Contains(err.Error(), "in it is the target's own") {
		t.Errorf("with something of the target's own in it: %v", err)
	}
}
