package lazyfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newApart(t *testing.T, granted bool) *rig {
	t.Helper()
	return newRigWith(t, granted, helperConf{Src: t.TempDir(), Store: t.TempDir(), Apart: true})
}

// TestReplyLost kills the daemon when an operation has been done at the source and before the kernel knows.
func TestReplyLost(t *testing.T) {
	r := newApart(t, true)
	src := func(n string) string { return filepath.Join(r.src, n) }
	at := func(n string) string { return filepath.Join(r.mnt, n) }
	for _, n := range []string{"seen", "old", "gone", "read", "log", "cut"} {
		write(t, src(n), "contents of "+n)
	}
	must(t, os.Mkdir(src("emptied"), 0o755))
	log, err := os.OpenFile(at("log"), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer log.Close()
	for _, c := range []struct {
		op string
		do func() error
	}{
		{"lookup", func() error { _, err := os.Lstat(at("seen")); return err }},
		{"write", func() error { _, err := log.WriteString("+once"); return err }},
		{"fsync", log.Sync},
		{"rename", func() error {
			return unix.Renameat2(unix.AT_FDCWD, at("old"), unix.AT_FDCWD, at("new"), unix.RENAME_NOREPLACE)
		}},
		{"create", func() error {
			f, err := os.OpenFile(at("made"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"mkdir", func() error { return os.Mkdir(at("dir"), 0o755) }},
		{"symlink", func() error { return os.Symlink("seen", at("sym")) }},
		{"link", func() error { return os.Link(at("seen"), at("linked")) }},
		{"unlink", func() error { return unix.Unlink(at("gone")) }},
		{"rmdir", func() error { return unix.Rmdir(at("emptied")) }},
		{"setattr", func() error { return os.Truncate(at("cut"), 8) }},
		{"setxattr", func() error { return unix.Setxattr(at("seen"), "user.x", []byte("v"), unix.XATTR_CREATE) }},
		{"open", func() error {
			f, err := os.Open(at("read"))
			if err == nil {
				err = f.Close()
			}
			return err
		}},
		{"read", func() error {
			b, err := os.ReadFile(at("read"))
			if err == nil && string(b) != "contents of read" {
				err = fmt.Errorf("read %q", b)
			}
			return err
		}},
		{"readdir", func() error {
			ents, err := os.ReadDir(r.mnt)
			if err == nil && len(ents) != 9 {
				err = fmt.Errorf("%d names: %v", len(ents), ents)
			}
			return err
		}},
	} {
		r.say("park "+c.op, "armed")
		got := make(chan error, 1)
		go func() { got <- c.do() }()
		r.expect("parked")
		select {
		case err := <-got:
			t.Fatalf("%s: %v while nobody has answered", c.op, err)
		default:
		}
		r.say("kill", "killed")
		select {
		case err := <-got:
			if err != nil {
				t.Errorf("%s: %v", c.op, err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s does not end", c.op)
		}
	}
	has(t, src("log"), "contents of log+once")
	has(t, src("cut"), "contents")
	if got := names(t, r.src); got != names(t, r.mnt) {
		t.Errorf("source has %s, mount %s", got, names(t, r.mnt))
	}
	deadline := time.Now().Add(2 * time.Minute)
	for must(t, log.Close()); !strings.Contains(r.say("stats", "nodes"), "handles 0"); { // closing is told in the kernel's own time
		if time.Now().After(deadline) {
			t.Fatal("a handle was opened twice: ", r.say("stats", "nodes"))
		}
	}
}

// TestModelKilled is TestModel with a daemon that is killed 100 times, while something is under way or not.
func TestModelKilled(t *testing.T) {
	for seed := range uint64(2) {
		r := newApart(t, true)
		kills := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range kills {
				r.say("kill", "killed")
			}
		}()
		model(t, seed+200, r, func(i int) {
			if i%15 == 0 {
				kills <- struct{}{}
			}
		})
		close(kills)
		<-done
	}
}

// TestLocalKept: files that exist on the target only, because they had lost their name before the grant, outlive the daemon.
func TestLocalKept(t *testing.T) {
	r := newApart(t, false)
	p := filepath.Join(r.mnt, "ghost")
	f, err := os.OpenFile(p, os.O_CREATE|os.O_RDWR, 0o640)
	must(t, err)
	defer f.Close()
	g := mustOpen(t, p)
	_, err = f.WriteString("before")
	must(t, err)
	must(t, os.Remove(p))
	r.grant()
	check := func(want string, mode os.FileMode) {
		t.Helper()
		b := make([]byte, 100)
		n, _ := f.ReadAt(b, 0) // io.EOF always
		st, err := f.Stat()
		must(t, err)
		if string(b[:n]) != want || st.Mode() != mode || st.Size() != int64(len(want)) {
			t.Fatalf("%q, %v", b[:n], st.Mode())
		}
	}
	check("before", 0o640)
	r.say("kill", "killed")
	check("before", 0o640)
	_, err = f.WriteString(" after")
	must(t, err)
	must(t, f.Chmod(0o600))
	must(t, unix.Fsetxattr(int(f.Fd()), "user.x", []byte("v"), unix.XATTR_CREATE))
	must(t, g.Close())
	r.say("kill", "killed")
	check("before after", 0o600)
	x := make([]byte, 10)
	if n, err := unix.Fgetxattr(int(f.Fd()), "user.x", x); err != nil || string(x[:n]) != "v" {
		t.Errorf("attribute %q, %v", x[:max(n, 0)], err)
	}
	wantErr(t, "setxattr", unix.Fsetxattr(int(f.Fd()), "user.x", []byte("v"), unix.XATTR_CREATE), unix.EEXIST)
	if s := r.say("stats", "nodes"); !strings.HasSuffix(s, "kept data-1 life node-1 state writes") {
		t.Errorf("%s", s)
	}
	must(t, f.Close())
	for deadline := time.Now().Add(2 * time.Minute); ; {
		must(t, unix.Mount("", r.mnt, "", unix.MS_REMOUNT, "")) // the kernel forgets
		if s := r.say("stats", "nodes"); strings.HasSuffix(s, "kept life state writes") {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(s)
		}
	}
}

// TestResendKnown: only kernels that say so send requests again.
func TestResendKnown(t *testing.T) {
	b := make([]byte, 104)
	binary.NativeEndian.PutUint32(b[56:], 1<<7)
	if canResend(b) || canResend(nil) {
		t.Error("without FUSE_INIT_EXT")
	}
	binary.NativeEndian.PutUint32(b[52:], 1<<30)
	if !canResend(b) {
		t.Error("FUSE_HAS_RESEND is not seen")
	}
}

// TestHeldKilled: a daemon that is killed between Hold and the grant takes nothing with it that was kept local.
func TestHeldKilled(t *testing.T) {
	r := newApart(t, false)
	at := func(n string) string { return filepath.Join(r.mnt, n) }
	for _, n := range []string{"f", "hidden", "moved"} {
		write(t, filepath.Join(r.src, n), n)
	}
	before := names(t, r.src)
	write(t, at("early"), "early")
	must(t, os.Remove(at("hidden")))
	must(t, os.Mkdir(at("d"), 0o755))
	r.say("hold", "held")
	kills := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range kills {
			r.say("kill", "killed")
		}
	}()
	for i := range 60 {
		if i%2 == 0 {
			kills <- struct{}{}
		}
		n := at(fmt.Sprintf("d/%d", i))
		f, err := os.OpenFile(n, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		must(t, err)
		_, err = f.WriteString("contents")
		must(t, err)
		must(t, os.Link(n, n+"l"))
		must(t, unix.Renameat2(unix.AT_FDCWD, n, unix.AT_FDCWD, n+"r", unix.RENAME_NOREPLACE))
		must(t, unix.Mknod(n, unix.S_IFSOCK|0o600, 0))
		must(t, os.Symlink("f", n+"s"))
		must(t, os.Mkdir(n+"d", 0o700))
		must(t, os.Remove(n+"d"))
		must(t, os.Remove(n+"l"))
		must(t, os.Remove(n+"r"))
		wantErr(t, "mkdir", unix.Mkdir(n, 0o700), unix.EEXIST)
		b := make([]byte, 20)
		if k, _ := f.ReadAt(b, 0); string(b[:k]) != "contents" {
			t.Fatalf("unlinked file has %q", b[:k])
		}
		must(t, f.Close())
		must(t, os.Rename(at("moved"), at("moved2")))
		must(t, os.Rename(at("moved2"), at("moved")))
		if _, err := os.Lstat(at("hidden")); !os.IsNotExist(err) {
			t.Fatalf("hidden file: %v", err)
		}
		has(t, at("early"), "early")
		has(t, at("f"), "f")
		has(t, at("moved"), "moved")
	}
	close(kills)
	<-done
	if got := names(t, at("d")); len(strings.Fields(got)) != 120 {
		t.Errorf("names %s", got)
	}
	r.say("kill", "killed")
	r.grant()
	r.say("kill", "killed")
	if after := names(t, r.mnt); after != before || names(t, r.src) != before {
		t.Errorf("after the grant %s, before %s", after, before)
	}
	has(t, at("hidden"), "hidden")
}
