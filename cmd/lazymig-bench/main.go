// Command lazymig-bench moves programs by lazymig, in each of its modes, and by stock CRIU, in one run on one machine, and says what each costs: a
// matrix of systems, loads, sizes and lines (matrix.go). What is moved takes pause and waits itself (loads.go).
//
// Each move has a fresh lab. What stock CRIU needs is given to it: its pipe limits are raised (and put back), its cache of
// kernel features is warm, its images go to the other host by a copy from tmpfs to tmpfs, its pages without encryption.
//
// `lazymig-bench -quick` is a short one that judges (quick.go). `lazymig-bench files` is another benchmark: files that are still at the source, beside sshfs (files.go). `lazymig-bench modes` holds the modes against each
// other, and what auto chooses against the best of them (modes.go). `lazymig-bench cut` is none: what becomes of the
// process when something breaks (cut.go).
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/setup"
)

func main() {
	lab.MaybeInit()
	if len(os.Args) > 1 && os.Args[1] == delayArg {
		fmt.Fprintf(os.Stderr, "lazymig-bench: %v\n", delay(os.Args[2:]))
		os.Exit(1)
	}
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		if err := roles[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	do := func(ctx context.Context) error { return matrixMain(ctx, os.Args[1:]) }
	switch {
	case len(os.Args) > 1 && os.Args[1] == filesArg:
		do = func(ctx context.Context) error { return filesMain(ctx, os.Args[2:]) }
	case len(os.Args) > 1 && os.Args[1] == modesArg:
		do = func(ctx context.Context) error { return modesMain(ctx, os.Args[2:]) }
	case len(os.Args) > 1 && os.Args[1] == cutArg:
		do = func(ctx context.Context) error { return cutMain(ctx, os.Args[2:]) }
	case len(os.Args) > 1 && os.Args[1] == quickArg:
		do = func(ctx context.Context) error { return quickMain(ctx, os.Args[2:]) }
	}
	err := do(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lazymig-bench: %v\n", err)
		os.Exit(1)
	}
}

// roles are what this program is started as in a host, beside delay.
var roles = map[string]func([]string) error{redisLoadArg: redisLoadMain, lineFarArg: lineFar, lineNearArg: lineNear}

func init() { maps.Copy(roles, filesRoles) }

// bench is what all moves share.
type bench struct {
	lazymig  string
	criu     string
	self     string
	workload string
	keys     string
	share    []string
	cpu      *cpuMeter
	gap      time.Duration // between the toucher's touches
	writer   string        // another workload, and how it writes; empty: the toucher
	pattern  string
	line     string        // a command on A that makes the line narrow; empty: it is as it is
	rtt      time.Duration // of the line between the hosts, for lazymig; 0: as it is
	verbose  bool
	load     string // the program of load.c
	cell     cell   // that is being measured, in a matrix

	afterResume func(pid int) error // called when the process runs on B; nil: nothing
}

// system is a way to move a process.
type system struct {
	name, what string
	move       func(*bench, context.Context, *lab.Lab, *process) (*outcome, error)
}

// systems in the order of the tables; their names are the -systems flag's.
var systems = []system{
	{"lazymig", "lazymig", (*bench).moveByLazymig},
	{"cleartext", "lazymig --cleartext", (*bench).moveInClear},
	{"one", "lazymig --connections 1", moveOver("1")},
	{"two", "lazymig --connections 2", moveOver("2")},
	{"four", "lazymig --connections 4", moveOver("4")},
	{"hybrid", "lazymig --mode hybrid", moveByMode(migrate.ModeHybrid)},
	{"pre", "lazymig --mode pre", moveByMode(migrate.ModePre)},
	{"stop", "lazymig --mode stop", moveByMode(migrate.ModeStop)},
	{"auto", "lazymig --mode auto", moveByMode(migrate.ModeAuto)},
	{"stock", "CRIU lazy-pages", (*bench).moveByStock},
	{"eager", "CRIU page-server", (*bench).moveEagerly},
	{"plain", "CRIU dump, copy, restore", (*bench).moveByPlain},
	{lineSystem, "a copy over TLS, " + strconv.Itoa(lineConns) + " connections", nil},
}

func systemNamed(name string) (s system, ok bool) {
	for _, s := range systems {
		if s.name == name {
			return s, true
		}
	}
	return s, false
}

// newBench makes what all moves need, and done takes it away.
func newBench(ctx context.Context, root string) (b *bench, done func() error, err error) {
	b = &bench{lazymig: filepath.Join(root, "bin/lazymig"), gap: 500 * time.Microsecond}
	if b.criu, err = setup.Find(""); err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(filepath.Join(root, "bin"), ".bench-")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory for the run: %w", err)
	}
	undo := []func() error{func() error { return os.RemoveAll(dir) }}
	done = func() (err error) {
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
		return err
	}
	b.self, b.workload, b.keys = filepath.Join(dir, "bench"), filepath.Join(dir, "workload"), filepath.Join(dir, "keys")
	b.share = append(lab.ProjectShare(root), filepath.Join(root, "bin"))
	err = errors.Join(copySelf(b.self), compile(ctx, b.workload, watchSource, workloadSource), keys.Init(b.keys), keys.Host(b.keys, "10.77.0.1", "10.77.0.2"))
	if err == nil {
		var putBack func() error
		if putBack, err = raisePipes(); err == nil {
			undo = append(undo, putBack)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, done())
	}
	return b, done, nil
}

// newMetered is newBench for moves by a program of the project's bin, whose CPU time is counted.
func newMetered(ctx context.Context, root, program string, verbose bool) (b *bench, done func() error, err error) {
	b, end, err := newBench(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	b.lazymig, b.verbose = filepath.Join(root, program), verbose
	if b.cpu, err = newCPUMeter(); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return b, func() error { return errors.Join(b.cpu.close(), end()) }, nil
}

func has[T comparable](l []T, v T) bool {
	return slices.Contains(l, v)
}

func parseSizes(s string) ([]int, error) {
	var out []int
	for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 || n > 1<<20 {
			return nil, fmt.Errorf("size %q is no number of megabytes", f)
		}
		out = append(out, n)
	}
	return out, nil
}

// projectRoot is the checkout that the working directory lies in.
func projectRoot() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := wd; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == "/" {
			return "", fmt.Errorf("no go.mod above %s: run it in the project", wd)
		}
	}
}

// copySelf puts this program where both hosts see it.
func copySelf(to string) error {
	b, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		return fmt.Errorf("copy own program: %w", err)
	}
	return nil
}
