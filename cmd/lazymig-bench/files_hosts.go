package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lazyfs"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// The processes of lazyfs on both hosts.

const (
	serveArg   = "files-serve"
	standbyArg = "files-standby"
	mountArg   = "files-mount"
	awaitArg   = "files-await"
	dialArg    = "files-dial"
	forgetArg  = "files-forget"

	startTime = 20 * time.Second // for anything to begin
)

// filesRoles are what this program is started as in a host.
var filesRoles = map[string]func([]string) error{
	serveArg: serveFiles, standbyArg: standBy, mountArg: mountFiles, awaitArg: awaitMount, dialArg: awaitPort, loadArg: runLoad, forgetArg: forgetPages,
}

// serveFiles is the source: KEYS LISTEN.
func serveFiles(args []string) error {
	k, err := keys.Load(args[0])
	if err != nil {
		return err
	}
	root, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	s, err := remotefs.NewServer(remotefs.ServerOptions{Root: root, Log: stderrLog()})
	if err != nil {
		return err
	}
	s.Grant()
	end, err := followed(s)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	fmt.Println("serves")
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				c, err := serverEnd(wire.Buffer(nc), k)
				if err == nil {
					err = s.Serve(context.Background(), wire.NewConn(c))
				}
				if err != nil {
					fmt.Fprintf(os.Stderr, "serve files: %v\n", err)
				}
			}()
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin) // until it ends
	return errors.Join(ln.Close(), s.Close(), end())
}

// followed gives the server a process that holds copies of what it knows.
func followed(s *remotefs.Server) (end func() error, err error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, err
	}
	defer peer.Close()
	cmd := exec.Command("/proc/self/exe", standbyArg)
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{peer}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start standby: %w", err)
	}
	s.SetJournal(journalTo{sock}, func(err error) { fmt.Fprintln(os.Stderr, err) })
	return func() error { return errors.Join(sock.Close(), cmd.Wait()) }, nil
}

type journalTo struct{ s *fdpass.Socket }

func (j journalTo) Send(b []byte, fds ...int) error { return j.s.SendFDs(b, fds...) }

// standBy follows until the server has ended.
func standBy([]string) error {
	sock, err := fdpass.New(os.NewFile(3, "journal"))
	if err != nil {
		return err
	}
	var st remotefs.Standby
	defer st.Close()
	raise := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &raise) // else with as many as there are
	buf := make([]byte, 256<<10)
	for {
		n, files, err := sock.Recv(buf)
		if err != nil {
			return nil // it has ended
		}
		fd := -1
		if len(files) == 1 {
			fd, err = unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 3)
			fdpass.CloseAll(files)
		}
		if err == nil {
			err = st.Apply(buf[:n], fd)
		}
		if err != nil {
			return err
		}
	}
}

// mountFiles is the target: KEYS ADDRESS NAME MOUNTPOINT. Others use the files: a process that waits for itself can hang for ever.
func mountFiles(args []string) error {
	cfg, err := clientOf(args[0], args[2])
	if err != nil {
		return err
	}
	nc, err := net.Dial("tcp", args[1])
	if err != nil {
		return err
	}
	c, err := clientEnd(wire.Buffer(nc), cfg)
	if err != nil {
		return err
	}
	client := remotefs.NewClient(wire.NewConn(c), remotefs.ClientOptions{Log: stderrLog()})
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fd, err := fdpass.Number(dev)
	if err != nil {
		return err
	}
	d, err := lazyfs.Start(context.Background(), lazyfs.Options{
		FuseFD: fd, Remote: client, StoreDir: "/var/lib/lazymig", Log: stderrLog(),
		Stream: true, Keep: func(int) error { return nil }, // as if another daemon could follow
	})
	if err != nil {
		return err
	}
	at := args[3]
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("lazymig", at, "fuse.lazymig", 0, lazyfs.MountOptions(fd)); err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	if err := d.Granted(); err != nil {
		return err
	}
	if len(args) > 5 && args[4] == storeArg {
		return errors.Join(withStore(d, client, args[5]), client.Close())
	}
	fmt.Println("mounted")
	return errors.Join(d.Wait(), client.Close()) // until it is unmounted
}

// awaitMount waits until A's files are at MOUNTPOINT, and puts this host's /dev into them, for programs whose root they are.
func awaitMount(args []string) error {
	at := args[0]
	for end := time.Now().Add(startTime); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(at + loadDir); err == nil {
			break
		} else if time.Now().After(end) {
			return err
		}
	}
	return unix.Mount("/dev", at+"/dev", "", unix.MS_BIND|unix.MS_REC, "")
}

// awaitPort waits until somebody listens at ADDRESS.
func awaitPort(args []string) error {
	for end := time.Now().Add(startTime); ; time.Sleep(time.Millisecond) {
		if c, err := net.Dial("tcp", args[0]); err == nil {
			return c.Close()
		} else if time.Now().After(end) {
			return err
		}
	}
}

// forgetPages takes the pages of a FILE from the kernel's cache. A directory has none, nor what a load only names so that little comes.
func forgetPages(args []string) error {
	fi, err := os.Stat(args[0])
	if errors.Is(err, os.ErrNotExist) || err == nil && !fi.Mode().IsRegular() {
		return nil
	} else if err != nil {
		return err
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

func stderrLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}
