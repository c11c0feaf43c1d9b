package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// fill makes files: path → contents; a path that ends with / is a directory, contents that begin with -> a link.
func fill(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for p, c := range files {
		q := filepath.Join(root, p)
		must(t, os.MkdirAll(filepath.Dir(q), 0o755))
		target, link := strings.CutPrefix(c, "->")
		switch {
		case strings.HasSuffix(p, "/"):
			must(t, os.MkdirAll(q, 0o755))
		case link:
			must(t, os.Symlink(target, q))
		default:
			must(t, os.WriteFile(q, []byte(c), 0o644))
		}
	}
}

// rested settles until everything that can be decided is.
func (r *rig) rested() (s Settled) {
	r.t.Helper()
	kerneltest.Eventually(r.t, "all directories are compared", func() bool {
		s = r.settle()
		return !slices.ContainsFunc(s.Undecided, func(u Undecided) bool { return u.Reason == comparing })
	})
	return s
}

func (s *Settled) summary(own string) string {
	var b strings.Builder
	for _, x := range s.Plan.Binds {
		if x.TargetPath != filepath.Join(own, x.Path) {
			fmt.Fprint(&b, "at ", x.TargetPath, " ")
		}
		fmt.Fprint(&b, "bind ", x.Path, " ")
	}
	for _, u := range s.Undecided {
		fmt.Fprint(&b, "undecided ", u.Path, " ")
	}
	return strings.TrimSpace(b.String())
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o600)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// TestPlan has a source and a target whose files are partly the same.
func TestPlan(t *testing.T) {
	r := newRigWith(t, helperConf{Src: t.TempDir(), Dir: t.TempDir(), Own: t.TempDir(), MaxNames: 30})
	both := map[string]string{
		"usr/lib/libc.so": "library", "usr/lib/link": "->libc.so", "usr/share/doc/x": "x", "bin": "->usr/bin", "usr/bin/prog": "program",
		"proc/": "", "sys/": "", "dev/null-not": "", "big/same/a": "a",
	}
	for i := range 40 {
		both[fmt.Sprintf("big/same/many%d", i)] = "m"
	}
	fill(t, r.src, both)
	fill(t, r.own, both)
	differ := map[string]string{"etc/hostname": "A", "srv/app/data": "data", "srv/app/sub/more": "more", "dev/shm/segment": "shared", "big/other/x": "1", "huge/own/y": "1", "etc/open": "same"}
	for i := range 40 {
		differ[fmt.Sprintf("huge/f%d", i)] = "f"
	}
	fill(t, r.src, differ)
	fill(t, r.own, map[string]string{"etc/hostname": "B", "etc/only-here": "B", "huge/g": "g", "local/own": "target's"})
	fill(t, r.src, map[string]string{"local/own": "source's"})
	lib := open(t, r.mnt+"/usr/lib/libc.so", unix.O_RDONLY)
	data := open(t, r.mnt+"/srv/app/data", unix.O_RDWR)
	r.move(Want{Cwd: []string{"/", "/srv/app"}, Local: []string{"/local"}})
	s := r.rested()
	if got, want := s.summary(r.own), "bind /big/same bind /local bind /usr undecided /huge"; got != want {
		t.Errorf("plan is %q, not %q: %v", got, want, s.Undecided)
	}
	if p := r.local(lib); p != r.root+"/usr/lib/libc.so" {
		t.Errorf("the open library is at %q", p)
	}
	if p := r.local(data); p != r.root+"/srv/app/data" {
		t.Errorf("the open file is at %q", p)
	}
	for p, want := range map[string]string{"etc/hostname": "A", "srv/app/sub/more": "more", "dev/shm/segment": "shared", "big/other/x": "1"} {
		if b, err := os.ReadFile(filepath.Join(r.root, p)); string(b) != want {
			t.Errorf("%s holds %q, %v", p, b, err)
		}
	}
	for _, p := range []string{"usr", "local", "proc", "sys", "big/same"} { // places to mount at
		if l, err := os.ReadDir(filepath.Join(r.root, p)); err != nil || len(l) > 0 {
			t.Errorf("%s holds %v, %v", p, l, err)
		}
	}
	if l, err := os.ReadDir(filepath.Join(r.root, "dev")); err != nil || len(l) != 1 {
		t.Errorf("dev holds %v, %v", l, err)
	}
	if l, err := os.Readlink(filepath.Join(r.root, "bin")); l != "usr/bin" {
		t.Errorf("bin leads to %q, %v", l, err)
	}

	// What was the same is changed by the tree: it comes, what is beside it stays the target's.
	must(t, os.WriteFile(r.mnt+"/usr/share/doc/x", []byte("new"), 0o644))
	s = r.rested()
	if got, want := s.summary(r.own), "bind /big/same bind /local bind /usr/bin bind /usr/lib undecided /huge"; got != want {
		t.Errorf("plan is %q, not %q: %v", got, want, s.Undecided)
	}
	if b, err := os.ReadFile(r.root + "/usr/share/doc/x"); string(b) != "new" {
		t.Errorf("the changed file holds %q, %v", b, err)
	}
	if p := r.local(lib); p != r.root+"/usr/lib/libc.so" {
		t.Errorf("the open library is at %q", p)
	}
	// What is declared to be the target's own must be what the tree has open, and is not written.
	open(t, r.mnt+"/local/own", unix.O_RDONLY)
	r.move(Want{With: []string{"/huge"}})
	s = r.rested()
	if got, want := s.summary(r.own), "bind /big/same bind /local bind /usr/bin bind /usr/lib undecided /local/own"; got != want {
		t.Errorf("plan is %q, not %q: %v", got, want, s.Undecided)
	}
	if b, err := os.ReadFile(r.root + "/huge/own/y"); string(b) != "1" {
		t.Errorf("what was to come along holds %q, %v", b, err)
	}
	// Declared later, where something is only read.
	fill(t, r.own, map[string]string{"etc/open": "same"})
	conf := open(t, r.mnt+"/etc/open", unix.O_RDONLY)
	s = r.rested()
	if p := r.local(conf); p != r.root+"/etc/open" {
		t.Errorf("the open configuration is at %q", p)
	}
	r.move(Want{Local: []string{"/etc"}})
	s = r.rested()
	if got, want := s.summary(r.own), "bind /big/same bind /etc bind /local bind /usr/bin bind /usr/lib undecided /local/own"; got != want {
		t.Errorf("plan is %q, not %q: %v", got, want, s.Undecided)
	}
	if p := r.local(conf); p != r.root+"/etc/open" {
		t.Errorf("the open configuration is at %q", p)
	}
	if l, err := os.ReadDir(r.root + "/etc"); err != nil || len(l) > 0 {
		t.Errorf("etc holds %v, %v", l, err)
	}
	if b, err := os.ReadFile(r.own + "/etc/hostname"); string(b) != "B" {
		t.Errorf("the target's own file holds %q, %v", b, err)
	}
}

// TestPlanBusy: a tree that writes to a file faster than it can be found out whether that comes does not keep the others, and then it, from coming.
func TestPlanBusy(t *testing.T) {
	r := newRigWith(t, helperConf{Src: t.TempDir(), Dir: t.TempDir(), Own: t.TempDir(), Writes: true})
	fill(t, r.src, map[string]string{"d/f": "contents", "e/g": "others"})
	f := open(t, r.mnt+"/d/f", unix.O_RDWR)
	r.move(Want{With: []string{"/e"}})
	_, err := unix.Pwrite(f, []byte("CON"), 0)
	must(t, err)
	r.here(2)
	r.settle()
	if b, err := os.ReadFile(r.local(f)); string(b) != "CONtents" {
		t.Errorf("the copy holds %q, %v", b, err)
	}
}

// TestPlanOwnRecords: lazymig's directory, which is another on each host, does not keep what it lies in from being the same.
func TestPlanOwnRecords(t *testing.T) {
	own := t.TempDir()
	dir := own + "/var/lib/lazymig/ID.target"
	must(t, os.MkdirAll(dir, 0o755))
	r := newRigWith(t, helperConf{Src: t.TempDir(), Dir: dir, Own: own})
	fill(t, r.src, map[string]string{"var/lib/x": "x", "var/lib/lazymig/ID.source/record": "r", "srv/": "", "tmp/d/": ""})
	fill(t, r.own, map[string]string{"var/lib/x": "x", "srv/": "", "tmp/d/": ""})
	r.move(Want{})
	s := r.rested()
	if got, want := s.summary(r.own), "bind /tmp bind /var"; got != want { // an empty directory of the target's is nobody's business
		t.Errorf("plan is %q, not %q: %v", got, want, s.Undecided)
	}
	must(t, os.WriteFile(r.mnt+"/var/lib/y", nil, 0o644))
	s = r.rested()
	if got, want := s.summary(r.own), "bind /tmp"; got != want {
		t.Errorf("plan is %q, not %q: %v", got, want, s.Undecided)
	}
	compare(t, "var", describe(t, r.src+"/var/lib/x"), describe(t, r.root+"/var/lib/x"))
}

// TestKernelFiles: what is a window into the source's kernel is no file; it is told, and in nobody's way.
func TestKernelFiles(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"jail/proc/": "", "jail/f": "f", "jail/ns": ""})
	must(t, unix.Mount("proc", r.src+"/jail/proc", "proc", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount(r.src+"/jail/proc", unix.MNT_DETACH)) })
	must(t, unix.Mount("/proc/self/ns/uts", r.src+"/jail/ns", "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(r.src+"/jail/ns", unix.MNT_DETACH)) })
	r.move(Want{With: []string{"/jail"}})
	s := r.rested()
	if len(s.Undecided) != 1 || s.Undecided[0].Path != "/jail/ns" {
		t.Errorf("undecided: %v", s.Undecided)
	}
	if l, err := os.ReadDir(r.root + "/jail/proc"); err != nil || len(l) > 0 {
		t.Errorf("of proc there is %v, %v", l, err)
	}
	if b, err := os.ReadFile(r.root + "/jail/f"); string(b) != "f" {
		t.Errorf("the file beside holds %q, %v", b, err)
	}
}
