package lazyfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// waitFor runs fn, which must end.
func waitFor(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s does not come", what)
	}
}

// TestCloseWithoutMount: the capsule failed before it mounted anything.
func TestCloseWithoutMount(t *testing.T) {
	root, err := os.OpenFile(t.TempDir(), unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	server, err := remotefs.NewServer(remotefs.ServerOptions{Root: root})
	must(t, err)
	must(t, root.Close())
	a, b, err := socketPair()
	must(t, err)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), wire.NewConn(a)) // ends with the connection, in one way or another
	}()
	client := remotefs.NewClient(wire.NewConn(b), remotefs.ClientOptions{})
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(t, err)
	d, err := Start(context.Background(), Options{FuseFD: fd, Remote: client})
	must(t, err)
	waitFor(t, "the daemon's end", func() { _ = d.Close(); _ = d.Close() })
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
		t.Error("descriptor is still open")
	}
	waitFor(t, "the client's end", func() { _ = client.Close() })
	waitFor(t, "the server's end", func() { <-served; _ = server.Close(); _ = server.Close() })
	_, err = client.GetAttr(context.Background(), 1)
	if err == nil {
		t.Error("a closed client answers")
	}
}

// TestLost: before the grant a lost source is an error, after it a wait that the daemon's end ends.
func TestLost(t *testing.T) {
	r := newRig(t, false)
	write(t, filepath.Join(r.src, "f"), "x")
	r.say("cut", "cut")
	_, err := os.ReadFile(filepath.Join(r.mnt, "f"))
	wantErr(t, "read", err, unix.EIO)

	r = newRig(t, true)
	write(t, filepath.Join(r.src, "f"), "x")
	has(t, filepath.Join(r.mnt, "f"), "x")
	r.say("cut", "cut")
	got := make(chan error, 1)
	go func() {
		_, err := os.ReadDir(r.mnt)
		got <- err
	}()
	for deadline := time.Now().Add(2 * time.Minute); r.say("waiting", "waiting") == "waiting 0"; {
		if time.Now().After(deadline) {
			t.Fatal("no operation waits")
		}
	}
	select {
	case err := <-got:
		t.Fatalf("a question that nobody can answer got %v", err)
	default:
	}
	_ = r.in.Close()
	waitFor(t, "an answer after the daemon's end", func() {
		if err := <-got; err == nil {
			t.Error("listed a lost source")
		}
	})
}

// TestAway: a lost connection that comes back is nothing but a wait, before the grant and after it.
func TestAway(t *testing.T) {
	for _, granted := range []bool{false, true} {
		t.Run(fmt.Sprint("granted ", granted), func(t *testing.T) {
			r := newRigWith(t, granted, helperConf{Src: t.TempDir(), Store: t.TempDir(), Plugs: true})
			write(t, filepath.Join(r.src, "f"), "old")
			has(t, filepath.Join(r.mnt, "f"), "old")
			r.say("unplug", "unplugged")
			write(t, filepath.Join(r.src, "g"), "new")
			got := make(chan error, 1)
			go func() {
				_, err := os.Stat(filepath.Join(r.mnt, "g"))
				got <- err
			}()
			for deadline := time.Now().Add(90 * time.Second); r.say("pending", "pending") == "pending 0"; {
				if time.Now().After(deadline) {
					t.Fatal("no operation waits")
				}
			}
			select {
			case err := <-got:
				t.Fatalf("a question that nobody can answer got %v", err)
			default:
			}
			r.say("plug", "plugged")
			waitFor(t, "the answer", func() { must(t, <-got) })
			has(t, filepath.Join(r.mnt, "g"), "new")
			r.say("unplug", "unplugged")
			go func() {
				got <- os.Mkdir(filepath.Join(r.mnt, "d"), 0o755)
			}()
			for deadline := time.Now().Add(90 * time.Second); r.say("pending", "pending") == "pending 0"; {
				if time.Now().After(deadline) {
					t.Fatal("no operation waits")
				}
			}
			_ = r.in.Close() // the end of the daemon while it has no connection
			waitFor(t, "an answer after the daemon's end", func() {
				if err := <-got; err == nil {
					t.Error("made a directory at a lost source")
				}
			})
		})
	}
}

// TestNothingIsLeft: nodes and handles of the server end with what the kernel knows.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t, false)
	for i := range 50 {
		write(t, filepath.Join(r.src, fmt.Sprint(i)), "x")
	}
	ents, err := os.ReadDir(r.mnt)
	must(t, err)
	for _, e := range ents {
		has(t, filepath.Join(r.mnt, e.Name()), "x")
		must(t, os.Rename(filepath.Join(r.mnt, e.Name()), filepath.Join(r.mnt, "x"+e.Name())))
		has(t, filepath.Join(r.mnt, "x"+e.Name()), "x")
		must(t, os.Link(filepath.Join(r.mnt, "x"+e.Name()), filepath.Join(r.mnt, "l"+e.Name())))
		write(t, filepath.Join(r.mnt, "own"+e.Name()), "y")
	}
	r.grant()
	ents, err = os.ReadDir(r.mnt)
	must(t, err)
	if len(ents) != 50 {
		t.Fatalf("%d names", len(ents))
	}
	must(t, os.RemoveAll(filepath.Join(r.mnt, "0")))
	// a remount makes the kernel forget all that is not in use; it tells so in its own time
	deadline := time.Now().Add(2 * time.Minute)
	for {
		must(t, unix.Mount("", r.mnt, "", unix.MS_REMOUNT, ""))
		s := r.say("stats", "nodes")
		if s == "nodes 1 handles 0 locals 0 names 0" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %s", s)
		}
	}
}

// TestStress lets several processes' worth of goroutines work in one directory.
func TestStress(t *testing.T) {
	r := newRig(t, true)
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			mine := filepath.Join(r.mnt, fmt.Sprintf("g%d", g))
			for i := range 60 {
				p := filepath.Join(r.mnt, fmt.Sprintf("f%d", (g+i)%7))
				_ = os.WriteFile(p, []byte("shared"), 0o644)
				_, _ = os.ReadFile(p)
				_ = os.Rename(p, filepath.Join(r.mnt, fmt.Sprintf("f%d", i%7)))
				_, _ = os.ReadDir(r.mnt)
				_ = os.Remove(p)
				want := fmt.Sprintf("%d of %d", i, g)
				if err := os.WriteFile(mine, []byte(want), 0o644); err != nil {
					t.Error(err)
				}
				if b, err := os.ReadFile(mine); err != nil || string(b) != want {
					t.Errorf("own file has %q, %v, want %q", b, err, want)
				}
			}
		})
	}
	wg.Wait()
	a, b := names(t, r.src), names(t, r.mnt)
	if a != b {
		t.Fatalf("source has %s, mount %s", a, b)
	}
}
