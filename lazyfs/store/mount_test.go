package store

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/lazyfs"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// The source's server, the daemon and the store run in a process of their own (this binary again): one that uses files which it
// serves itself can hang for ever.

const helperEnv = "STORE_TEST_HELPER"

func TestMain(m *testing.M) {
	if conf := os.Getenv(helperEnv); conf != "" {
		if err := helper(conf); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type helperConf struct {
	Src, Dir, Own string
	MaxNames      int
	Later         bool // the store comes after what is open
	Eager         bool // copies are brought up to date without a pause
	Writes        bool // the tree writes to a file whenever it is looked where that is
}

// writable is the inode of a file that somebody else can write.
var writable atomic.Uint64

// helper serves a source until its standard input ends. Descriptor 3 is /dev/fuse. A command is a line, its answer a line of JSON.
func helper(conf string) error {
	var c helperConf
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	root, err := os.OpenFile(c.Src, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	server, err := remotefs.NewServer(remotefs.ServerOptions{Root: root, Log: log, Writers: func(files []remotefs.FileID) (map[remotefs.FileID]string, error) {
		found := map[remotefs.FileID]string{}
		for _, f := range files {
			if f.Ino == writable.Load() {
				found[f] = "is open for writing by a test"
			}
		}
		return found, nil
	}})
	if err != nil {
		return err
	}
	_ = root.Close()
	a, b, err := socketPair()
	if err != nil {
		return err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(context.Background(), wire.NewConn(a)) // ends with the connection
	}()
	client := remotefs.NewClient(wire.NewConn(b), remotefs.ClientOptions{Log: log})
	d, err := lazyfs.Start(context.Background(), lazyfs.Options{FuseFD: 3, Remote: client, StoreDir: c.Dir, Log: log})
	if err != nil {
		return err
	}
	m := &meddler{Remote: client}
	m.path.Store("")
	s, err := New(context.Background(), Options{
		Dir: c.Dir, Own: c.Own, MaxNames: c.MaxNames, Later: c.Later, Remote: m, Busy: d.Busy, Locals: d.NameLocals, Log: log,
	})
	if err != nil {
		return err
	}
	if c.Eager {
		s.between = time.Millisecond
	}
	if c.Writes {
		m.writes = s
	}
	answer := func(v any, err error) {
		if err != nil {
			fmt.Println("error:", err)
			return
		}
		out, err := json.Marshal(v)
		if err != nil {
			out = []byte(err.Error())
		}
		fmt.Println(string(out))
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		cmd, arg, _ := strings.Cut(in.Text(), " ")
		switch cmd {
		case "grant":
			server.Grant()
			err := d.Granted()
			if !c.Later {
				d.Watch(s)
			}
			answer("granted", err)
		case "move":
			var w Want
			err := json.Unmarshal([]byte(arg), &w)
			s.Move(w)
			answer("moving", err)
		case "settle":
			r, err := s.Settle(context.Background())
			answer(r, err)
		case "writable":
			var ino uint64
			err := json.Unmarshal([]byte(arg), &ino)
			writable.Store(ino)
			answer("writable", err)
		case "remove":
			r, err := s.RemoveSource(context.Background(), []string{arg})
			answer(r, err)
		case "differs", "filesdiffer":
			var paths []string
			err := json.Unmarshal([]byte(arg), &paths)
			var all []Undecided
			differs := Differs
			if cmd != "differs" {
				differs = FilesDiffer
			}
			if err == nil {
				all, err = differs(context.Background(), client, c.Own, paths, 5)
			}
			answer(all, err)
		case "meddle":
			m.path.Store(arg)
			answer("meddling", nil)
		case "bytes":
			answer(server.Stats().Bytes, nil)
		case "status":
			answer(s.Status(), nil)
		case "files":
			answer(s.Files(), nil)
		case "local":
			var inos []uint64
			err := json.Unmarshal([]byte(arg), &inos)
			paths := map[uint64][]byte{} // a name need not be UTF-8
			for _, ino := range inos {
				if p, ok := s.Local(ino); ok {
					paths[ino] = []byte(p)
				}
			}
			answer(paths, err)
		case "done":
			answer("done", s.Done())
		}
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	_ = client.Close()
	if err := server.Close(); err != nil {
		return err
	}
	<-served
	fmt.Println("closed")
	return nil
}

// meddler is somebody else on the source, who writes whenever it is looked whether anybody does.
type meddler struct {
	Remote
	path   atomic.Value // string; empty: nothing
	writes *Store       // hears of a write by the tree whenever it is looked where a file is; nil: of none
}

func (m *meddler) Path(ctx context.Context, node uint64) (string, error) {
	if m.writes != nil {
		m.writes.Wrote(node, 0, 1)
		defer m.writes.Wrote(node, 0, 1)
	}
	return m.Remote.Path(ctx, node)
}

func (m *meddler) Stamps(ctx context.Context, nodes []uint64) ([]remotefs.FileStamp, error) {
	if p := m.path.Load().(string); p != "" {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if _, err := f.WriteString("x"); err != nil {
			return nil, err
		}
	}
	return m.Remote.Stamps(ctx, nodes)
}

func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var c [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if c[i], err = net.FileConn(f); err != nil {
			return nil, nil, err
		}
		_ = f.Close()
	}
	return c[0], c[1], nil
}

// rig is a source directory, the mount of it that the tree would see, and the store's directory.
type rig struct {
	t             testing.TB
	src, mnt, dir string
	own           string // the target's own root
	root          string // the store's
	cmd           *exec.Cmd
	in            *os.File
	lines         chan string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	return newRigWith(t, helperConf{Src: t.TempDir(), Dir: t.TempDir(), Own: t.TempDir()})
}

func newRigWith(t testing.TB, c helperConf) *rig {
	t.Helper()
	conf, err := json.Marshal(c)
	must(t, err)
	r := &rig{t: t, src: c.Src, dir: c.Dir, own: c.Own, root: filepath.Join(c.Dir, "root"), mnt: filepath.Join(t.TempDir(), "mnt"), lines: make(chan string, 100)}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	must(t, err)
	pr, pw, err := os.Pipe()
	must(t, err)
	r.in = pw
	r.cmd = exec.Command("/proc/self/exe")
	r.cmd.Env = append(os.Environ(), helperEnv+"="+string(conf))
	r.cmd.Stdin, r.cmd.Stderr, r.cmd.ExtraFiles = pr, os.Stderr, []*os.File{dev}
	r.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := r.cmd.StdoutPipe()
	must(t, err)
	must(t, r.cmd.Start())
	_ = pr.Close()
	go func() {
		defer close(r.lines)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 16<<20)
		for s.Scan() {
			r.lines <- s.Text()
		}
	}()
	t.Cleanup(r.end)
	r.answer()
	must(t, os.Mkdir(r.mnt, 0o755))
	must(t, unix.Mount("lazymig", r.mnt, "fuse.lazymig", 0, lazyfs.MountOptions(int(dev.Fd()))))
	_ = dev.Close() // now the helper's death ends the connection
	r.say("grant", nil)
	return r
}

func (r *rig) end() {
	if err := unix.Unmount(r.mnt, unix.MNT_DETACH); err != nil {
		r.t.Errorf("unmount: %v", err)
	}
	_ = r.in.Close()
	late := time.AfterFunc(2*time.Minute, func() { _ = r.cmd.Process.Kill() })
	defer late.Stop()
	last := ""
	for last = range r.lines { // until the helper's end
	}
	if err := r.cmd.Wait(); err != nil {
		r.t.Errorf("helper: %v, last word %q", err, last)
	}
}

func (r *rig) answer() string {
	r.t.Helper()
	select {
	case s, ok := <-r.lines:
		if !ok {
			r.t.Fatal("helper has ended")
		}
		return s
	case <-time.After(2 * time.Minute):
		r.t.Fatal("helper does not answer")
	}
	return ""
}

// say gives a command; its result goes to v. A failure is returned.
func (r *rig) try(cmd string, v any) error {
	r.t.Helper()
	if _, err := fmt.Fprintln(r.in, cmd); err != nil {
		r.t.Fatal(err)
	}
	a := r.answer()
	if e, ok := strings.CutPrefix(a, "error: "); ok {
		return fmt.Errorf("%s: %s", cmd, e)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(a), v); err != nil {
			r.t.Fatalf("%s: %v: %s", cmd, err, a)
		}
	}
	return nil
}

func (r *rig) say(cmd string, v any) {
	r.t.Helper()
	must(r.t, r.try(cmd, v))
}

func (r *rig) move(w Want) {
	r.t.Helper()
	b, err := json.Marshal(w)
	must(r.t, err)
	r.say("move "+string(b), nil)
}

// settle is the stop: nothing is written by the test meanwhile.
func (r *rig) settle() (s Settled) {
	r.t.Helper()
	r.say("settle", &s)
	return s
}

// local is where the copy of an open file is.
func (r *rig) local(fd int) string {
	r.t.Helper()
	var st unix.Stat_t
	must(r.t, unix.Fstat(fd, &st))
	var paths map[uint64][]byte
	r.say(fmt.Sprintf("local [%d]", st.Ino), &paths)
	if paths[st.Ino] == nil {
		return ""
	}
	return filepath.Join(r.root, string(paths[st.Ino]))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
