package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
)

// Options says how the lab shall be. The zero value works.
type Options struct {
	// Dir keeps sockets, logs and mount points; short, because a socket's path has
	// 107 bytes at most. Empty: a new directory below /run or the temporary
	// directory, removed by Down.
	Dir string
	// Self is the executable that calls [MaybeInit]; empty: this one.
	Self string
	// Share are files and directories that both hosts see at their own path,
	// read-only in B and in A if A's private file systems would hide them.
	// [ProjectShare] names those of a checkout.
	Share []string
	// Disk puts /srv and /var/lib/lazymig of both hosts into directories below
	// Dir instead of tmpfs: fsync then costs what the disk costs.
	Disk bool
	Log  *slog.Logger
}

// Lab is two hosts and the link between them.
type Lab struct {
	A, B *Host

	dir  string
	lock *os.File // of an own folder, else nil
	down sync.Once
	err  error
}

// offset is how far B's clocks are ahead, in seconds.
const offset = 1000

// Up makes the two hosts. The caller has to call Down; if the process dies
// before, the hosts die too; its folder is removed by the next Up.
//
// Descriptors that this process has inherited without being asked (a shell's
// pipe) are marked close-on-exec: in a host they would be held outside the tree.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if err := keepStrays(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Self == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find own executable: %w", err)
		}
		o.Self = self
	}
	l := &Lab{dir: o.Dir}
	if l.dir == "" {
		var err error
		if l.dir, l.lock, err = tempDir(); err != nil {
			return nil, err
		}
	} else if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make lab folder: %w", err)
	}
	if err := l.start(ctx, o); err != nil {
		return nil, errors.Join(err, l.Down())
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context, o Options) error {
	var err error
	if l.A, err = startHost(ctx, o, l.dir, hostConfig{Name: "A", Hostname: "lab-a", FirstPid: 1000}); err != nil {
		return err
	}
	if l.B, err = startHost(ctx, o, l.dir, hostConfig{Name: "B", Hostname: "lab-b", FirstPid: 20000, OwnRoot: true, Offset: offset}); err != nil {
		return err
	}
	l.A.Addr, l.B.Addr = addrA, addrB
	return l.connect(ctx)
}

func tempDir() (string, *os.File, error) {
	var errs error
	for _, base := range []string{"/run", os.TempDir()} {
		dir, err := os.MkdirTemp(base, "lab-")
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		lock, err := claim(dir)
		if err == nil {
			err = sweep(base)
		}
		if err == nil {
			return dir, lock, nil
		}
		if lock != nil {
			lock.Close()
		}
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return "", nil, fmt.Errorf("make lab folder: %w", errs)
}

// Down kills both hosts with all that runs in them. It may be called twice.
func (l *Lab) Down() error {
	l.down.Do(func() {
		for _, h := range []*Host{l.A, l.B} {
			if h != nil {
				l.err = errors.Join(l.err, h.Kill())
			}
		}
		if l.lock != nil {
			l.err = errors.Join(l.err, os.RemoveAll(l.dir))
			l.lock.Close()
		} else {
			for _, n := range []string{"A", "B"} {
				l.err = errors.Join(l.err, removeHostFiles(l.dir, n))
			}
		}
	})
	return l.err
}

func removeHostFiles(dir, name string) error {
	var errs error
	for _, f := range []string{".sock", ".log", ".root", ".disk"} {
		errs = errors.Join(errs, os.RemoveAll(filepath.Join(dir, name+f)))
	}
	return errs
}

// tailOf returns the end of a log for an error message.
func tailOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() > 4096 {
		_, _ = f.Seek(-4096, io.SeekEnd)
	}
	b, _ := io.ReadAll(f)
	return string(b)
}
