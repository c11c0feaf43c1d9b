package migrate

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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
	tgt.msg.InPlace, tgt.msg.Overwrite = true, true
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

// put is what comes before the stop, and in it. The paths in other differ from the source's.
func put(tgt *Target, l *detach.Local, other ...string) (places, aside []string, err error) {
	if err := tgt.choosePlaces(func(p string) (string, error) {
		if slices.Contains(other, p) {
			return p + " is another", nil
		}
		return "", nil
	}); err != nil {
		return nil, nil, err
	}
	return tgt.place(l)
}

func TestPlaces(t *testing.T) {
	tgt, host := placing(t, "app", "deep/er/new", "app/in", "single", "none")
	store := tgt.copyOf(host)
	hostBefore, storeBefore := treeOf(t, host), treeOf(t, store)
	var l detach.Local
	for range 2 { // what is taken back can be done again
		l = detach.Local{Binds: []detach.Bind{{Path: "/zzz", Target: "/zzz"}}}
		if _, _, err := put(tgt, &l); err != nil {
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
	if _, _, err := put(tgt, &l); err != nil {
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
	if kept, err := tgt.finishPlaces(); err != nil || len(kept) > 0 {
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
		if _, _, err := put(tgt, &detach.Local{}); err != nil {
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
	if _, _, err := put(tgt, &detach.Local{Binds: []detach.Bind{{Path: host + "/app/in"}}}); err != nil {
		t.Errorf("nothing is to be put anywhere: %v", err)
	}
	tgt.msg.With = []string{host + "/app"}
	tgt.rec.Dir = filepath.Join(filepath.Dir(host), "state", "id.target")
	if _, _, err := put(tgt, &detach.Local{Binds: []detach.Bind{{Path: host + "/app/in"}}}); err == nil || !strings.Contains(err.Error(), "in it is the target's own") {
		t.Errorf("with something of the target's own in it: %v", err)
	}
}

// TestPlacesUsed puts what nobody has named in its place: what is missing on the target, with what is missing above it, and what is the same. What differs is left where it is, but
// for single files that may be overwritten.
func TestPlacesUsed(t *testing.T) {
	for _, over := range []bool{false, true} {
		tgt, host := placing(t)
		tgt.msg.Overwrite = over
		for p, c := range map[string]string{"lib/same": "s", "lib/other": "mine", "dir/x": "x", "opt/app/bin/prog": "p", "opt/app/data": "d", "opt/own/z": "z", "equal/f": "f"} {
			for _, root := range []string{tgt.copyOf(host), host} {
				if p == "lib/other" && root == host {
					c = "theirs"
				}
				if strings.HasPrefix(p, "opt/") && root == host {
					continue
				}
				if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, p)), 0o755), os.WriteFile(filepath.Join(root, p), []byte(c), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
		}
		at := func(p string) string { return filepath.Join(host, p) }
		tgt.msg.UsesDirs = []string{at("app"), at("equal"), at("opt/app/bin"), "/proc/x"}
		tgt.msg.UsesFiles = []string{at("lib/same"), at("lib/other"), at("opt/app/data"), at("none"), at("opt/own/z"), at("bound/f")}
		before := treeOf(t, host) + treeOf(t, tgt.copyOf(host))
		l := detach.Local{Binds: []detach.Bind{{Path: at("bound")}, {Path: at("opt/own/y")}}} // so not all of opt can be moved
		places, aside, err := put(tgt, &l, at("app"))
		if err != nil {
			t.Fatal(err)
		}
		want := "/equal /opt/app/bin /opt/app/data /opt/own/z"
		wantAside := "/app /lib/other /proc/x"
		if over {
			want, wantAside = "/equal /lib/other /opt/app/bin /opt/app/data /opt/own/z", "/app /proc/x"
		}
		if got := strings.ReplaceAll(strings.Join(places, " "), host, ""); got != want {
			t.Errorf("overwrite %v: in place are %s, want %s", over, got, want)
		}
		for i, a := range aside {
			a, _, _ = strings.Cut(a, " ")
			aside[i] = strings.TrimPrefix(a, host)
		}
		slices.Sort(aside)
		if got := strings.Join(aside, " "); got != wantAside {
			t.Errorf("overwrite %v: aside are %s, want %s", over, got, wantAside)
		}
		if c, err := os.ReadFile(at("app/data")); err != nil || string(c) != "own" {
			t.Errorf("the target's own has %q, %v", c, err)
		}
		if err := tgt.takeBack(); err != nil {
			t.Fatal(err)
		}
		if got := treeOf(t, host) + treeOf(t, tgt.copyOf(host)); got != before {
			t.Errorf("taken back: %s, had %s", got, before)
		}
	}
}

// TestPlacesTop moves a directory that the target has not got with all that is in it.
func TestPlacesTop(t *testing.T) {
	tgt, host := placing(t)
	tgt.msg.UsesFiles = []string{host + "/deep/er/new/file"}
	places, aside, err := put(tgt, &detach.Local{})
	if err != nil || len(aside) > 0 || len(places) != 1 || places[0] != host+"/deep" {
		t.Fatalf("in place are %v, aside %v, %v", places, aside, err)
	}
	if fi, err := os.Stat(host + "/deep"); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
}

// TestPlacesLate: what turns up or changes on the target after all was compared is never lost.
func TestPlacesLate(t *testing.T) {
	tgt, host := placing(t, "app", "deep")
	tgt.msg.Overwrite = false
	tgt.msg.UsesFiles = []string{host + "/single"}
	if err := os.Remove(host + "/single"); err != nil {
		t.Fatal(err)
	}
	if err := tgt.choosePlaces(func(string) (string, error) { return "", nil }); err != nil {
		t.Fatal(err)
	}
	for p, c := range map[string]string{"/single": "late", "/deep": "late", "/app/data": "late"} {
		if err := os.WriteFile(host+p, []byte(c), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	places, aside, err := tgt.place(&detach.Local{})
	if err != nil || strings.Join(places, " ") != host+"/app" || len(aside) != 2 {
		t.Fatalf("in place are %v, aside %v, %v", places, aside, err)
	}
	for _, p := range []string{"/single", "/deep"} {
		if c, err := os.ReadFile(host + p); err != nil || string(c) != "late" {
			t.Errorf("%s has %q, %v", p, c, err)
		}
	}
	kept, err := tgt.finishPlaces()
	if err != nil || len(kept) != 1 {
		t.Fatalf("kept %v, %v", kept, err)
	}
	if c, err := os.ReadFile(tgt.copyOf(host + "/app/data")); err != nil || string(c) != "late" {
		t.Errorf("what was written last has %q, %v", c, err)
	}
}

// TestPlacesElsewhere copies a file to another file system before the stop; nothing of that is left if it is given up in the middle, or when it is finished.
func TestPlacesElsewhere(t *testing.T) {
	tgt, host := placing(t)
	other := filepath.Join(host, "other")
	if err := errors.Join(os.Mkdir(other, 0o755), unix.Mount("tmpfs", other, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(other, 0); err != nil {
			t.Error(err)
		}
	}()
	from := tgt.copyOf(filepath.Join(other, "in/file"))
	had := tgt.copyOf(filepath.Join(other, "had"))
	for p, c := range map[string]string{from: "moved", had: "moved, too", other + "/had": "own"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(c), 0o600), os.Chown(p, 5, 6)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(from, "trusted.x", []byte("v"), 0); err != nil {
		t.Fatal(err)
	}
	tgt.msg.UsesFiles = []string{filepath.Join(other, "had"), filepath.Join(other, "in/file")}
	if err := tgt.choosePlaces(nil); err != nil {
		t.Fatal(err)
	}
	if err := tgt.takeBack(); err != nil || treeOf(t, other) != "had=own\n" { // an agent that died before the stop
		t.Fatalf("%s is left, %v", treeOf(t, other), err)
	}
	for end := range 2 {
		if places, aside, err := put(tgt, &detach.Local{}); err != nil || len(places) != 2 {
			t.Fatalf("in place are %v, aside %v, %v", places, aside, err)
		}
		if c, err := os.ReadFile(other + "/in/file"); err != nil || string(c) != "moved" {
			t.Errorf("it has %q, %v", c, err)
		}
		want := "had=own\n"
		err := error(nil)
		if end == 0 {
			err = tgt.takeBack()
		} else {
			want = "had=moved, too\nin\nin/file=moved\n"
			_, err = tgt.finishPlaces()
		}
		if got := treeOf(t, other); err != nil || got != want {
			t.Errorf("in the end there is %s, %v", got, err)
		}
	}
	var st unix.Stat_t
	v := make([]byte, 10)
	n, err := unix.Getxattr(other+"/in/file", "trusted.x", v)
	if unix.Stat(other+"/in/file", &st) != nil || st.Uid != 5 || st.Gid != 6 || st.Mode&0o777 != 0o600 || err != nil || string(v[:n]) != "v" {
		t.Errorf("%+v, %q, %v", st, v, err)
	}
	// written since: it stays in the store
	if err := errors.Join(os.RemoveAll(other+"/in"), tgt.choosePlaces(nil), os.WriteFile(from, []byte("newer"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if places, aside, err := tgt.place(&detach.Local{}); err != nil || len(places) != 0 || len(aside) != 1 {
		t.Errorf("in place are %v, aside %v, %v", places, aside, err)
	}
	if _, err := tgt.finishPlaces(); err != nil || treeOf(t, other) != "had=moved, too\n" {
		t.Errorf("%s is left, %v", treeOf(t, other), err)
	}
}
