package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// complete lets everything come and settles; nothing may be undecided.
func (r *rig) complete(w Want) {
	r.t.Helper()
	r.move(w)
	if s := r.rested(); len(s.Undecided) > 0 {
		r.t.Fatalf("undecided: %v", s.Undecided)
	}
}

// TestKinds copies all that a file can be.
func TestKinds(t *testing.T) {
	r := newRig(t)
	d := filepath.Join(r.src, "d")
	fill(t, d, map[string]string{"f": "contents", "sub/g": "g", "link": "->nowhere", "suid": "#!", "cap": "prog", "acl": "x", "empty": ""})
	must(t, os.Link(d+"/f", d+"/sub/f2"))
	must(t, unix.Mkfifo(d+"/fifo", 0o620))
	must(t, unix.Mknod(d+"/sock", unix.S_IFSOCK|0o777, 0))
	must(t, unix.Mknod(d+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(d+"/blk", unix.S_IFBLK|0o660, int(unix.Mkdev(7, 99))))
	must(t, os.Chown(d+"/suid", 1, 2))
	must(t, unix.Chmod(d+"/suid", 0o6755))
	must(t, unix.Chmod(d+"/sub", 0o1777))
	must(t, os.Lchown(d+"/link", 5, 6))
	must(t, unix.Setxattr(d+"/cap", "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x07\x00\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")
	must(t, unix.Setxattr(d+"/acl", "system.posix_acl_access", acl, 0))
	must(t, unix.Setxattr(d+"/sub", "system.posix_acl_default", acl, 0))
	must(t, unix.Setxattr(d+"/f", "trusted.x", bytes.Repeat([]byte("v"), 3000), 0))
	for _, p := range []string{"f", "link", "fifo", "sock", "sub"} {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, d+"/"+p, []unix.Timespec{{Sec: 1, Nsec: 123456789}, {Sec: 2, Nsec: 987654321}}, unix.AT_SYMLINK_NOFOLLOW))
	}
	r.complete(Want{With: []string{"/d"}})
	compare(t, "kinds", describe(t, r.src), describe(t, r.root))
	must(t, os.WriteFile(r.mnt+"/d/cap", []byte("other"), 0o755)) // takes the capability away
	must(t, os.Chmod(r.mnt+"/d/acl", 0o600))
	r.settle()
	compare(t, "changed", describe(t, r.src), describe(t, r.root))
	var files []File
	r.say("files", &files)
	if len(files) != 11 {
		t.Errorf("%d files are listed: %v", len(files), files)
	}
	for _, f := range files {
		if f.State != stateHere || f.Left != 0 {
			t.Errorf("after the settle %+v", f)
		}
	}
}

// TestSparse: holes stay holes, also those that come later, and 1 TB of them is no more work than none.
func TestSparse(t *testing.T) {
	r := newRig(t)
	must(t, os.Mkdir(r.src+"/d", 0o755))
	f, err := os.Create(r.src + "/d/sparse")
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(1<<40))
	mb := bytes.Repeat([]byte("x"), 1<<20)
	for _, off := range []int64{0, 1 << 30, 1<<39 + 4096, 1<<40 - 1<<20} {
		_, err := f.WriteAt(mb, off)
		must(t, err)
	}
	r.complete(Want{With: []string{"/d"}})
	same := func(what string) {
		t.Helper()
		var a, b unix.Stat_t
		must(t, unix.Stat(r.src+"/d/sparse", &a))
		must(t, unix.Stat(r.root+"/d/sparse", &b))
		if a.Size != b.Size || a.Mtim != b.Mtim || b.Blocks > a.Blocks+64 {
			t.Errorf("%s: the copy is %+v, not %+v", what, b, a)
		}
		g, err := os.Open(r.root + "/d/sparse")
		must(t, err)
		defer g.Close()
		for _, off := range []int64{0, 1 << 30, 1<<39 + 4096, 1 << 38, 1<<40 - 1<<20} {
			x, y := make([]byte, 1<<20), make([]byte, 1<<20)
			_, err := f.ReadAt(x, off)
			must(t, err)
			_, err = g.ReadAt(y, off)
			must(t, err)
			if !bytes.Equal(x, y) {
				t.Errorf("%s: contents at %d differ", what, off)
			}
		}
	}
	same("copied")
	w := open(t, r.mnt+"/d/sparse", unix.O_RDWR)
	must(t, unix.Fallocate(w, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<30, 1<<20))
	_, err = unix.Pwrite(w, mb, 1<<38)
	must(t, err)
	r.settle()
	same("punched")
}

// TestUnlinked keeps a file that is open and has no name, until the tree lives on the copies.
func TestUnlinked(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"d/f": "contents", "d/g": "gone later"})
	f, g := open(t, r.mnt+"/d/f", unix.O_RDWR), open(t, r.mnt+"/d/g", unix.O_RDWR)
	must(t, unix.Unlink(r.mnt+"/d/f"))
	r.complete(Want{With: []string{"/d"}})
	must(t, unix.Unlink(r.mnt+"/d/g"))
	_, err := unix.Pwrite(f, []byte("CON"), 0)
	must(t, err)
	r.settle()
	var kept []*os.File
	for fd, want := range map[int]string{f: "CONtents", g: "gone later"} {
		p := r.local(fd)
		b, err := os.ReadFile(p)
		if string(b) != want || !strings.HasPrefix(p, filepath.Join(r.root, hiddenDir)) {
			t.Errorf("the copy is %s and holds %q, %v", p, b, err)
		}
		o, err := os.Open(p)
		must(t, err)
		defer o.Close()
		kept = append(kept, o)
	}
	r.say("done", nil)
	for _, o := range kept {
		var st unix.Stat_t
		must(t, unix.Fstat(int(o.Fd()), &st))
		if st.Nlink != 0 {
			t.Errorf("%s has %d names", o.Name(), st.Nlink)
		}
	}
	if l, err := os.ReadDir(r.root); err != nil || len(l) != 1 {
		t.Errorf("the root holds %v, %v", l, err)
	}
}

// TestForeign: what somebody else on the source writes is noticed, reported and copied again; while it goes on nothing settles.
func TestForeign(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"d/f": strings.Repeat("0123456789abcdef", 1000), "d/h": "h"})
	r.complete(Want{With: []string{"/d"}})
	f, err := os.OpenFile(r.src+"/d/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("XYZ"), 5000)
	must(t, err)
	fill(t, r.src, map[string]string{"d/new": "new"})
	r.settle()
	compare(t, "foreign", describe(t, r.src), describe(t, r.root))
	var st Status
	r.say("status", &st)
	if st.Foreign["/d/f"] == 0 || st.Foreign["/d"] == 0 || st.Foreign["/d/h"] != 0 {
		t.Errorf("changed by others are %v", st.Foreign)
	}
	r.say("meddle "+r.src+"/d/f", nil)
	if err := r.try("settle", nil); err == nil || !strings.Contains(err.Error(), "/d/f") {
		t.Errorf("settled while somebody else writes: %v", err)
	}
	r.say("meddle", nil)
	r.settle()
	compare(t, "afterwards", describe(t, r.src), describe(t, r.root))
}

// TestNoSpace fills the store: that is said, the tree's files work on, and with room it goes on.
func TestNoSpace(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	r := newRigWith(t, helperConf{Src: t.TempDir(), Dir: dir, Own: t.TempDir()})
	must(t, os.Mkdir(r.src+"/d", 0o755))
	must(t, os.WriteFile(r.src+"/d/f", bytes.Repeat([]byte("x"), 8<<20), 0o644))
	r.move(Want{With: []string{"/d"}})
	var st Status
	kerneltest.Eventually(t, "the full store is told of", func() bool {
		r.say("status", &st)
		return strings.Contains(st.Blocked, "no space")
	})
	if err := r.try("settle", nil); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("settled without room: %v", err)
	}
	must(t, os.WriteFile(r.mnt+"/d/g", []byte("works"), 0o644))
	if b, err := os.ReadFile(r.mnt + "/d/f"); err != nil || len(b) != 8<<20 {
		t.Errorf("the tree reads %d bytes, %v", len(b), err)
	}
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"))
	r.settle()
	compare(t, "with room", describe(t, r.src), describe(t, r.root))
}

// TestWriters: who else can write a file keeps it from becoming the target's.
func TestWriters(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"d/f": "f", "d/g": "g"})
	r.move(Want{With: []string{"/d"}})
	var st unix.Stat_t
	must(t, unix.Stat(r.src+"/d/f", &st))
	r.say(fmt.Sprint("writable ", st.Ino), nil)
	if s := r.rested(); len(s.Undecided) != 1 || s.Undecided[0].Path != "/d/f" || !strings.Contains(s.Undecided[0].Reason, "by a test") {
		t.Errorf("undecided: %v", s.Undecided)
	}
	r.say("writable 0", nil)
	if s := r.rested(); len(s.Undecided) != 0 {
		t.Errorf("undecided: %v", s.Undecided)
	}
}

// TestRemoveSource: what has moved goes from the source, what was changed there since stays.
func TestRemoveSource(t *testing.T) {
	r := newRig(t)
	fill(t, r.src, map[string]string{"d/f": "f", "d/sub/g": "g", "d/l": "->f", "e/x": "x"})
	must(t, os.Link(r.src+"/d/f", r.src+"/d/f2"))
	if err := r.try("remove /d", nil); err == nil {
		t.Error("removed before anything has moved")
	}
	r.complete(Want{With: []string{"/d"}})
	want := describe(t, r.root+"/d")
	must(t, os.WriteFile(r.src+"/d/sub/g", []byte("another"), 0o644))
	var gone Removed
	r.say("remove /d", &gone)
	if gone.Files != 3 || len(gone.Kept) != 3 { // the file, and the directories that it is in
		t.Errorf("%+v", gone)
	}
	gone = Removed{}
	r.say("remove /none", &gone)
	if len(gone.Kept) != 1 {
		t.Errorf("%+v", gone)
	}
	if l := describe(t, r.src+"/d"); len(l) != 3 {
		t.Errorf("left at the source: %v", l)
	}
	if b, err := os.ReadFile(r.src + "/d/sub/g"); string(b) != "another" {
		t.Errorf("the changed file holds %q, %v", b, err)
	}
	compare(t, "copy", want, describe(t, r.root+"/d"))
}

// TestLater: a store that comes after a daemon's death learns from the source what is open.
func TestLater(t *testing.T) {
	r := newRigWith(t, helperConf{Src: t.TempDir(), Dir: t.TempDir(), Own: t.TempDir(), Later: true})
	fill(t, r.src, map[string]string{"d/f": "contents", "d/w": "w"})
	f := open(t, r.mnt+"/d/f", unix.O_RDONLY)
	w := open(t, r.mnt+"/d/w", unix.O_RDWR)
	must(t, unix.Unlink(r.mnt+"/d/f"))
	r.complete(Want{})
	for fd, want := range map[int]string{f: "contents", w: "w"} {
		if b, err := os.ReadFile(r.local(fd)); string(b) != want {
			t.Errorf("the copy holds %q, %v", b, err)
		}
	}
}
