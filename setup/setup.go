package setup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options says what [Run] does. The zero value installs CRIU alone.
type Options struct {
	CacheDir string   // the prefix; empty: [DefaultCacheDir]
	Packages []string // distribution packages that shall be there
	Suite    string   // Debian suite that has CRIU; empty: forky
	Mirror   string   // Debian mirror; empty: that of the machine's apt sources
	Out      io.Writer
	Log      *slog.Logger
}

// Run installs what is missing and returns the path of a CRIU that is new
// enough. It is idempotent; a second run only looks.
func Run(ctx context.Context, o Options) (criuPath string, err error) {
	o = o.withDefaults()
	if err := installPackages(ctx, o, o.Packages); err != nil {
		return "", err
	}
	if p, err := exec.LookPath("criu"); err == nil && checkVersion(p) == nil {
		fmt.Fprintf(o.Out, "criu: %s is new enough\n", p)
		return p, nil
	}
	return installCRIU(ctx, o)
}

func (o Options) withDefaults() Options {
	if o.CacheDir == "" {
		o.CacheDir = DefaultCacheDir()
	}
	if o.Suite == "" {
		o.Suite = "forky"
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// installCRIU makes the prefix unless it is there.
func installCRIU(ctx context.Context, o Options) (string, error) {
	final, err := filepath.Abs(o.CacheDir)
	if err != nil {
		return "", fmt.Errorf("resolve cache folder: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", fmt.Errorf("make cache folder: %w", err)
	}
	unlock, err := lock(ctx, final+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()

	criu := Prefix(final).Criu()
	if checkVersion(criu) == nil {
		fmt.Fprintf(o.Out, "criu: %s is there\n", criu)
		return criu, nil
	}
	fmt.Fprintf(o.Out, "criu: installing CRIU of Debian %s into %s\n", o.Suite, final)
	if err := installPackages(ctx, o, []string{"patchelf"}); err != nil {
		return "", err
	}
	// Left-overs of a killed run: nobody else builds here, we hold the lock.
	stale, err := filepath.Glob(final + ".build-*")
	if err != nil {
		return "", fmt.Errorf("look for left-overs: %w", err)
	}
	for _, d := range stale {
		if err := os.RemoveAll(d); err != nil {
			return "", fmt.Errorf("remove left-over: %w", err)
		}
	}
	build, err := os.MkdirTemp(filepath.Dir(final), filepath.Base(final)+".build-")
	if err != nil {
		return "", fmt.Errorf("make build folder: %w", err)
	}
	defer os.RemoveAll(build)
	debs, err := download(ctx, o, build)
	if err != nil {
		return "", err
	}
	root := filepath.Join(build, "root")
	if err := unpack(ctx, o, debs, root); err != nil {
		return "", err
	}
	if err := relocate(ctx, o, root, final); err != nil {
		return "", err
	}
	// What was written is run before it is trusted; its loader lies elsewhere as yet.
	argv := Prefix(root).Argv("--version")
	out, err := run(ctx, o, argv[0], argv[1:]...)
	if err != nil {
		return "", err
	}
	if _, err := parseVersion(out); err != nil {
		return "", err
	}
	if err := os.RemoveAll(final); err != nil {
		return "", fmt.Errorf("remove old CRIU: %w", err)
	}
	if err := os.Rename(root, final); err != nil {
		return "", fmt.Errorf("put CRIU in place: %w", err)
	}
	if err := checkVersion(criu); err != nil {
		return "", err
	}
	fmt.Fprintf(o.Out, "criu: %s installed\n", criu)
	return criu, nil
}

// lock takes a flock that the kernel drops when the process dies. It waits for
// another setup, as long as ctx allows.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	// A blocking flock could not be interrupted, so ask again and again.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another setup: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return func() { f.Close() }, nil
}

// run runs a program; its output is in the error if it fails.
func run(ctx context.Context, o Options, name string, args ...string) (string, error) {
	o.Log.Debug("run", "argv", append([]string{name}, args...))
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C: the context ends it, once
	out, err := cmd.CombinedOutput()
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, ctx.Err())
		}
		return string(out), fmt.Errorf("run %s: %w\n%s", name, err, tail(string(out), 20))
	}
	return string(out), nil
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func ownedByUs(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false
	}
	return int(st.Uid) == os.Geteuid() || st.Uid == 0
}
