package detach

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && apartRoles[os.Args[1]] != nil {
		if err := apartRoles[os.Args[1]](); err != nil {
			fmt.Fprintln(os.Stderr, os.Args[1], err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	kerneltest.Main(m)
}

// tree is testdata/tree.c at work, its root a file system of its own.
type tree struct {
	t        *testing.T
	old, new string
	cmd      *exec.Cmd
	pid      int
	in       io.Writer
	out      *bufio.Reader
	dev      uint64
}

func tmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("test", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func startTree(t *testing.T) *tree {
	t.Helper()
	kerneltest.NeedRoot(t)
	tr := &tree{t: t, old: t.TempDir(), new: t.TempDir()}
	tmpfs(t, tr.old)
	tmpfs(t, tr.new)
	for _, d := range []string{"proc", "dev", "dev/shm", "tmp"} {
		for _, r := range []string{tr.old, tr.new} {
			if err := os.Mkdir(filepath.Join(r, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	src, err := os.ReadFile("testdata/tree.c")
	if err != nil {
		t.Fatal(err)
	}
	prog := kerneltest.CompileC(t, string(src), "-static", "-pthread")
	b, err := os.ReadFile(prog)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tr.old, "tree"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(tr.old, &st); err != nil {
		t.Fatal(err)
	}
	tr.dev = st.Dev
	tr.cmd = exec.Command(prog, tr.old)
	tr.cmd.Stderr = os.Stderr
	if tr.in, err = tr.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := tr.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	tr.out = bufio.NewReader(out)
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr.pid = tr.cmd.Process.Pid
	t.Cleanup(func() {
		pids, _ := tr.tasks()
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL) // some have ended
		}
		_ = tr.cmd.Wait() // killed
	})
	tr.answer()
	return tr
}

func (tr *tree) answer() {
	tr.t.Helper()
	line, err := tr.out.ReadString('\n')
	if err != nil || line != "OK\n" {
		tr.t.Fatalf("tree says %q, %v", line, err)
	}
}

func (tr *tree) check() {
	tr.t.Helper()
	if _, err := io.WriteString(tr.in, "check\n"); err != nil {
		tr.t.Fatal(err)
	}
	tr.answer()
}

// tasks are the root process and its descendants.
func (tr *tree) tasks() ([]int, error) {
	all := []int{tr.pid}
	for i := 0; i < len(all); i++ {
		tids, err := numbers(fmt.Sprintf("/proc/%d/task", all[i]))
		if err != nil {
			continue
		}
		for _, tid := range tids {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", all[i], tid))
			for f := range strings.FieldsSeq(string(b)) {
				pid, err := strconv.Atoi(f)
				if err != nil {
					return nil, err
				}
				all = append(all, pid)
			}
		}
	}
	return all, nil
}

// settle copies everything and finds the copies by path, what has no path through the descriptor.
func (tr *tree) settle(_ context.Context, inodes []uint64) (Local, error) {
	l := Local{Root: tr.new, Files: map[uint64]string{}}
	if out, err := exec.Command("cp", "-aT", tr.old, tr.new).CombinedOutput(); err != nil {
		return l, fmt.Errorf("cp: %s: %w", out, err)
	}
	err := filepath.Walk(tr.old, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		l.Files[st.Ino] = "/" + strings.TrimPrefix(strings.TrimPrefix(p, tr.old), "/")
		return nil
	})
	if err != nil {
		return l, err
	}
	pids, err := tr.tasks()
	if err != nil {
		return l, err
	}
	for _, pid := range pids {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, p := range links {
			var st unix.Stat_t
			if unix.Stat(p, &st) != nil || st.Dev != tr.dev || l.Files[st.Ino] != "" {
				continue
			}
			l.Files[st.Ino] = fmt.Sprintf("/tmp/%d", st.Ino)
			b, err := os.ReadFile(p)
			if err != nil {
				return l, err
			}
			if err := os.WriteFile(filepath.Join(tr.new, l.Files[st.Ino]), b, 0o600); err != nil {
				return l, err
			}
		}
	}
	return l, nil
}

func (tr *tree) options() Options {
	return Options{Tasks: tr.tasks, MountNS: tr.pid, Dev: tr.dev, Settle: tr.settle}
}

// uses lists what the tree has of a file system, by all that /proc tells.
func (tr *tree) uses(dev uint64) (all []string) {
	tr.t.Helper()
	pids, err := tr.tasks()
	if err != nil {
		tr.t.Fatal(err)
	}
	for _, pid := range pids {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, n := range []string{"exe", "cwd", "root"} {
			links = append(links, fmt.Sprintf("/proc/%d/%s", pid, n))
		}
		for _, p := range links {
			var st unix.Stat_t
			if unix.Stat(p, &st) == nil && st.Dev == dev {
				all = append(all, p)
			}
		}
		maps, _ := mapsOf(pid, dev)
		for _, v := range maps {
			all = append(all, fmt.Sprintf("%d: mapping of %s", pid, v.path))
		}
	}
	ms, err := mountsOf(tr.pid)
	if err != nil {
		tr.t.Fatal(err)
	}
	for _, m := range ms {
		if m.dev == dev {
			all = append(all, "mount at "+m.path)
		}
	}
	return all
}

func TestSwitch(t *testing.T) {
	kerneltest.Leaks(t)
	tr := startTree(t)
	stuck, err := Look(tr.options())
	if err != nil || len(stuck) > 0 {
		t.Fatalf("look: %v, %v", stuck, err)
	}
	rep, err := Switch(t.Context(), tr.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", rep)
	if left := tr.uses(tr.dev); len(left) > 0 {
		t.Errorf("still used: %v", left)
	}
	tr.check()
	tr.check()
}

// TestSwitchMany is what a detach is measured by: 64 descriptors and 100 mappings, beside those that the tree has anyway. It tells the time, and demands none.
func TestSwitchMany(t *testing.T) {
	kerneltest.Leaks(t)
	tr := startTree(t)
	if _, err := io.WriteString(tr.in, "many\n"); err != nil {
		t.Fatal(err)
	}
	tr.answer()
	tr.check()
	rep, err := Switch(t.Context(), tr.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped for %.1f ms, %.1f of them settling: %d descriptors, %d mappings of %d processes", rep.StopMS, rep.SettleMS, rep.Descriptors, rep.Mappings, rep.Processes)
	if left := tr.uses(tr.dev); len(left) > 0 {
		t.Errorf("still used: %v", left)
	}
	tr.check()
}

// A failure leaves everything as it was, wherever it comes from.
func TestSwitchFails(t *testing.T) {
	kerneltest.Leaks(t)
	tr := startTree(t)
	before := tr.uses(tr.dev)
	for _, f := range []struct {
		name string
		make func(l *Local) error
	}{
		{"settle fails", func(*Local) error { return errors.New("the network is cut") }},
		{"a file is missing", func(l *Local) error {
			for ino, p := range l.Files {
				if p == "/data" {
					delete(l.Files, ino)
				}
			}
			return nil
		}},
		{"no executable", func(l *Local) error { return os.Chmod(filepath.Join(l.Root, "tree"), 0o644) }},
		{"a size differs", func(l *Local) error { return os.Truncate(filepath.Join(l.Root, "log"), 1) }},
		{"nothing to mount on", func(l *Local) error { return os.Remove(filepath.Join(l.Root, "proc")) }},
		{"no such bind", func(l *Local) error { l.Binds = []Bind{{"/none", "/usr"}}; return nil }},
	} {
		t.Run(f.name, func(t *testing.T) {
			o := tr.options()
			o.Settle = func(ctx context.Context, inodes []uint64) (Local, error) {
				l, err := tr.settle(ctx, inodes)
				if err != nil {
					t.Error(err)
				}
				return l, f.make(&l)
			}
			_, err := Switch(t.Context(), o)
			if _, broken := errors.AsType[*Broken](err); err == nil || broken {
				t.Fatalf("switch: %v", err)
			}
			t.Log(err)
			if after := tr.uses(tr.dev); strings.Join(after, " ") != strings.Join(before, " ") {
				t.Errorf("it used %v before and uses %v now", before, after)
			}
			tr.check()
		})
		if err := os.MkdirAll(filepath.Join(tr.new, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Switch(t.Context(), tr.options()); err != nil {
		t.Fatal(err)
	}
	tr.check()
}
