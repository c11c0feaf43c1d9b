package lazyfs

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
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/remotefs"
)

// Server and daemon run in a process of their own (this binary again), as in life: a process that uses files which
// it serves itself can hang for ever, in a page fault, in epoll_ctl, in exit.

const helperEnv = "LAZYFS_TEST_HELPER"

func TestMain(m *testing.M) {
	if conf := os.Getenv(helperEnv); conf != "" && os.Getenv(apartEnv) == "" {
		if err := helper(conf); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if mode := os.Getenv(actEnv); mode != "" {
		if err := act(mode, os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if conf := os.Getenv(apartEnv); conf != "" {
		if err := apartDaemon(conf); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

type helperConf struct {
	Src, Store string
	Local      map[string][]byte
	Groups     []uint32
	Clone      bool   // export a clone of the one mount that Src is, so that the test's own mounts are not inside
	Cuts       uint64 // not 0: connections end after a number of bytes that this seeds, and new ones take their place
	Plugs      bool   // unplug and plug are understood
	Seeds      []remotefs.SeedPath
	Tight      bool // the source's room is asked for once, and writes may take all of it
	Apart      bool // the daemon is a process of its own, see apart_test.go
}

// helper serves until its standard input ends. Descriptor 3 is /dev/fuse.
func helper(conf string) error {
	var c helperConf
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	level := slog.LevelWarn
	if c.Apart {
		level = slog.LevelError // the server warns of each client that is killed
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	root, err := os.OpenFile(c.Src, unix.O_PATH|unix.O_DIRECTORY, 0)
	if c.Clone {
		var fd int
		if fd, err = unix.OpenTree(unix.AT_FDCWD, c.Src, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err == nil {
			root = os.NewFile(uintptr(fd), c.Src)
		}
	}
	if err != nil {
		return err
	}
	server, err := remotefs.NewServer(remotefs.ServerOptions{Root: root, Groups: c.Groups, Log: log})
	if err != nil {
		return err
	}
	_ = root.Close()
	if c.Apart {
		return apart(server, c.Store)
	}
	server.Seed(c.Seeds)
	p := &plug{server: server, cuts: c.Cuts, ready: make(chan struct{})}
	conn, err := p.connect()
	if err != nil {
		return err
	}
	o := remotefs.ClientOptions{Log: log}
	if c.Cuts != 0 || c.Plugs {
		o.Lost, o.Log = p.lost, nil
	}
	client := remotefs.NewClient(conn, o)
	p.client = client
	close(p.ready)
	hung := &hanger{Client: client}
	opt := Options{FuseFD: 3, Remote: hung, StoreDir: c.Store, LocalFiles: c.Local, Log: log, Keep: func(int) error { return nil }, Stream: true}
	if c.Seeds != nil {
		opt.Seeds = client
	}
	d, err := Start(context.Background(), opt)
	if err != nil {
		return err
	}
	if c.Tight {
		d.fs.stream.spare, d.fs.stream.stays = 0, time.Hour
	}
	fmt.Println("ready")
	var calm sync.WaitGroup
	defer calm.Wait()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "grant":
			server.Grant()
			if err := d.Granted(); err != nil {
				return err
			}
			fmt.Println("granted")
		case "seeded":
			<-d.Seeded()
			fmt.Println("seeded")
		case "freeze":
			server.Frozen(nil)
			<-d.Frozen()
			fmt.Println("frozen")
		case "hang":
			hung.mu.Lock()
			hung.on = true
			hung.mu.Unlock()
			fmt.Println("hangs")
		case "let":
			hung.end()
			fmt.Println("lets")
		case "waited":
			fmt.Println("waited", server.Stats().Waited)
		case "streamed":
			s := d.fs.stream
			s.mu.Lock()
			rooms := 0
			for _, r := range s.rooms {
				if r.known {
					rooms++
				}
			}
			fmt.Println("streamed", s.taken, "rooms", rooms, "pending", len(s.nodes))
			s.mu.Unlock()
		case "calm": // for ever
			d.fs.stream.calms = time.Hour
			calm.Go(func() {
				if err := d.Calm(context.Background()); err != nil {
					fmt.Println(err)
					return
				}
				fmt.Println("calm")
			})
		case "ask": // for the source's room again and again
			s := d.fs.stream
			s.mu.Lock()
			s.stays = 0
			s.mu.Unlock()
			fmt.Println("asks")
		case "calming":
			s := d.fs.stream
			s.mu.Lock()
			fmt.Println("calming", s.calmers)
			s.mu.Unlock()
		case "settle":
			if err := d.Settle(context.Background()); err != nil {
				return err
			}
			fmt.Println("settled unheard", len(d.Unheard()))
		case "cut":
			_ = client.Close()
			fmt.Println("cut")
		case "pending":
			fmt.Println("pending", client.Waiting())
		case "young": // what the kernel keeps of lists, for ever
			fmt.Println("young", d.fs.listings.shift(time.Now().Add(time.Hour)))
		case "old": // and nothing is known here
			d.fs.names.dropAll()
			fmt.Println("old", d.fs.listings.shift(time.Time{}))
		case "unplug":
			p.unplug()
			fmt.Println("unplugged")
		case "plug":
			if err := p.plug(); err != nil {
				return err
			}
			fmt.Println("plugged")
		case "lost":
			fmt.Println("lost", p.count())
		case "waiting":
			fmt.Println("waiting", d.fs.waiting.Load())
		case "stats":
			d.fs.names.dropAll()
			s := server.Stats()
			d.fs.ov.mu.Lock()
			fmt.Println("nodes", s.Nodes, "handles", s.Handles, "locals", len(d.fs.ov.locals), "names", len(d.fs.ov.names))
			d.fs.ov.mu.Unlock()
		}
	}
	if err := d.Close(); err != nil {
		return err
	}
	_ = client.Close()
	if err := server.Close(); err != nil {
		return err
	}
	p.wg.Wait()
	fmt.Println("closed")
	return nil
}

// fileConn makes a connection of a socket, which it takes over.
func fileConn(f *os.File) (net.Conn, error) {
	defer f.Close()
	return net.FileConn(f)
}

// socketPair is a stream connection between two ends in this process.
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

// rig is a source directory and the mount of it that the tree would see.
type rig struct {
	t        *testing.T
	src, mnt string
	cmd      *exec.Cmd
	in       *os.File
	lines    chan string
}

func newRig(t *testing.T, granted bool) *rig {
	t.Helper()
	return newRigWith(t, granted, helperConf{Src: t.TempDir(), Store: t.TempDir()})
}

func newRigWith(t *testing.T, granted bool, c helperConf) *rig {
	t.Helper()
	conf, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, src: c.Src, mnt: filepath.Join(t.TempDir(), "mnt"), lines: make(chan string, 100)}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.in = pw
	r.cmd = exec.Command("/proc/self/exe")
	r.cmd.Env = append(os.Environ(), helperEnv+"="+string(conf))
	r.cmd.Stdin, r.cmd.Stderr, r.cmd.ExtraFiles = pr, os.Stderr, []*os.File{dev}
	r.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = pr.Close()
	go func() {
		defer close(r.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.lines <- s.Text()
		}
	}()
	t.Cleanup(r.end)
	r.expect("ready")
	if err := os.Mkdir(r.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("lazymig", r.mnt, "fuse.lazymig", 0, MountOptions(int(dev.Fd()))); err != nil {
		t.Fatalf("mount: %v", err)
	}
	_ = dev.Close() // now the helper's death ends the connection
	if granted {
		r.grant()
	}
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

func (r *rig) expect(prefix string) string {
	r.t.Helper()
	select {
	case s, ok := <-r.lines:
		if !ok || !strings.HasPrefix(s, prefix) {
			r.t.Fatalf("helper says %q, not %q", s, prefix)
		}
		return s
	case <-time.After(2 * time.Minute):
		r.t.Fatalf("helper does not say %q", prefix)
	}
	return ""
}

func (r *rig) say(s, answer string) string {
	r.t.Helper()
	if _, err := fmt.Fprintln(r.in, s); err != nil {
		r.t.Fatal(err)
	}
	return r.expect(answer)
}

func (r *rig) grant() { r.t.Helper(); r.say("grant", "granted") }
