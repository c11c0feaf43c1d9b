// Command lazymig-bench moves one workload by lazymig, with encryption and without, by stock CRIU with lazy pages, and by plain dump, copy and restore, in
// one run on one machine, and prints what each costs. The workload (testdata/workload.c) takes pause and faults itself.
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
	"flag"
	"fmt"
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
	if len(os.Args) > 1 && filesRoles[os.Args[1]] != nil {
		if err := filesRoles[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	do := run
	switch {
	case len(os.Args) > 1 && os.Args[1] == filesArg:
		do = func(ctx context.Context) error { return filesMain(ctx, os.Args[2:]) }
	case len(os.Args) > 1 && os.Args[1] == modesArg:
		do = func(ctx context.Context) error { return modesMain(ctx, os.Args[2:]) }
	case len(os.Args) > 1 && os.Args[1] == cutArg:
		do = func(ctx context.Context) error { return cutMain(ctx, os.Args[2:]) }
	}
	err := do(ctx)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "lazymig-bench: %v\n", err)
		os.Exit(1)
	}
}

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

	afterResume func(pid int) error // called when the process runs on B; nil: nothing
}

// systems in the order of the tables; their names are the -systems flag's.
var systems = []struct {
	name, what string
	move       func(*bench, context.Context, *lab.Lab, *process) (*outcome, error)
}{
	{"lazymig", "lazymig", (*bench).moveByLazymig},
	{"cleartext", "lazymig --cleartext", (*bench).moveInClear},
	{"hybrid", "lazymig --mode hybrid", moveByMode(migrate.ModeHybrid)},
	{"pre", "lazymig --mode pre", moveByMode(migrate.ModePre)},
	{"stop", "lazymig --mode stop", moveByMode(migrate.ModeStop)},
	{"stock", "CRIU lazy-pages", (*bench).moveByStock},
	{"plain", "CRIU dump, copy, restore", (*bench).moveByPlain},
}

func run(ctx context.Context) (err error) {
	sizes := flag.String("sizes", "64,512,2048,8192", "memory `sizes` in MB")
	plain := flag.String("plain", "64,512,2048", "`sizes` for plain dump and restore (its images need memory three times)")
	which := flag.String("systems", "lazymig,cleartext,stock,plain", "what is measured")
	runs := flag.Int("runs", 3, "moves of each kind; medians are printed")
	gap := flag.Duration("gap", 500*time.Microsecond, "between two touches of random pages")
	rtt := flag.Duration("rtt", 0, "round trip of the line that lazymig moves over; the others have none")
	out := flag.String("out", "docs/benchmarks.md", "report to `FILE` below the project; empty: none")
	program := flag.String("lazymig", "bin/lazymig", "the program, below the project's bin")
	verbose := flag.Bool("v", false, "print each move's details and logs of failures")
	quick := flag.Bool("quick", false, "judge ratios by "+quickSystems+" at "+quickSizes+" MB, and write no report")
	flag.Parse()
	if *quick {
		*sizes, *which, *runs, *out = quickSizes, quickSystems, quickRuns, ""
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, quickTime)
		defer cancel()
	}
	all, err := parseSizes(*sizes)
	if err != nil {
		return err
	}
	small, err := parseSizes(*plain)
	if err != nil {
		return err
	}
	root, err := projectRoot()
	if err != nil {
		return err
	}
	b, done, err := newBench(ctx, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	b.lazymig, b.gap, b.rtt, b.verbose = filepath.Join(root, *program), *gap, *rtt, *verbose
	if b.cpu, err = newCPUMeter(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cpu.close()) }()

	r := &report{sizes: all, runs: *runs, args: os.Args[1:]}
	r.machine.look()
	for _, mb := range all {
		for n := range *runs { // systems take turns, so that a slow minute hits all
			for _, s := range systems {
				if !has(strings.Split(*which, ","), s.name) || s.name == "plain" && !has(small, mb) {
					continue
				}
				if err := warmMemory(ctx, mb); err != nil {
					return err
				}
				o, err := b.measure(ctx, mb, s.move)
				if err != nil {
					return fmt.Errorf("move %d MB by %s: %w", mb, s.what, err)
				}
				fmt.Printf("%-9s %5d MB  run %d  %s\n", s.name, mb, n+1, o)
				r.add(s.name, mb, o)
			}
		}
	}
	if *quick {
		trip, err := emptyTrip(ctx, b.keys, "10.77.0.2")
		if err != nil {
			return err
		}
		return r.quick(os.Stdout, trip)
	}
	r.machine.lookAgain()
	text := r.markdown()
	fmt.Println("\n" + text)
	if *out != "" {
		if err := writeSection(filepath.Join(root, *out), movesTitle, text); err != nil {
			return err
		}
	}
	return r.lastLine(os.Stdout)
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
	err = errors.Join(copySelf(b.self), compileWorkload(ctx, workloadSource, b.workload), keys.Init(b.keys), keys.Host(b.keys, "10.77.0.1", "10.77.0.2"))
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
