package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lazymig/lazymig/lab"
)

// cutArg makes this program another comparison: what becomes of a process when something breaks just after it has begun to run on the target, with
// most of its memory still at the source.
const cutArg = "cut"

const cutTitle = "# When something breaks"

// breaks are what happens. Whether it is the system's duty to survive it is the same question for both.
var breaks = []struct {
	what string
	do   func(ctx context.Context, l *lab.Lab) error
}{
	{"link down for 10 s", func(ctx context.Context, l *lab.Lab) error {
		if err := l.CutLink(ctx); err != nil {
			return err
		}
		err := rest(ctx, 10*time.Second)
		return errors.Join(err, l.RestoreLink(ctx))
	}},
	{"connections reset", func(ctx context.Context, l *lab.Lab) error { return sh(ctx, l.A, "ss -K dst "+l.B.Addr+" >/dev/null") }},
	{"kill -9 of what fetches pages", func(ctx context.Context, l *lab.Lab) error {
		return sh(ctx, l.B, "pkill -KILL -f '[l]azymig handler|[l]azy-pages'")
	}},
}

// cutEnd is what is left when all has come to rest.
type cutEnd struct {
	onA, onB bool   // it makes progress there
	memory   string // as the process on B finds it in the end
}

func (e cutEnd) String() string {
	var s []string
	switch {
	case e.onA && e.onB:
		s = append(s, "**runs on both hosts**")
	case e.onA:
		s = append(s, "runs on the source")
	case e.onB:
		s = append(s, "runs on the target alone")
	default:
		s = append(s, "runs nowhere")
	}
	return strings.Join(append(s, e.memory), "; ")
}

const (
	cutMB     = 512
	settleFor = 12 * time.Second // notices, gives up, tries again
	watchFor  = 2 * time.Second
)

func cutMain(ctx context.Context, args []string) error {
	f := flag.NewFlagSet(cutArg, flag.ContinueOnError)
	out := f.String("out", "docs/benchmarks.md", "report to `FILE` below the project; empty: none")
	if err := f.Parse(args); err != nil {
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
	var table strings.Builder
	fmt.Fprintf(&table, "| | stock CRIU, `dump --lazy-pages` | lazymig |\n|---|---|---|\n")
	for _, k := range breaks {
		var ends [2]cutEnd
		for i, move := range []func(*bench, context.Context, *lab.Lab, *process) (*outcome, error){(*bench).moveByStock, (*bench).moveByLazymig} {
			var e error
			if ends[i], e = b.cut(ctx, k.do, move); e != nil {
				return errors.Join(fmt.Errorf("%s: %w", k.what, e), done())
			}
			fmt.Printf("%s: %s\n", k.what, ends[i])
		}
		fmt.Fprintf(&table, "| %s | %s | %s |\n", k.what, ends[0], ends[1])
	}
	if err := done(); err != nil {
		return err
	}
	text := fmt.Sprintf("%s\n\nMade by `make compare-cut`: a process of %d MB that checks its memory is moved, and when it has just begun to run on the target something breaks. "+
		"%v after that is mended it is looked whether it makes progress, on either host; then it is told to end, checks all its memory, and says what it found.\n\n%s", cutTitle, cutMB, settleFor, table.String())
	fmt.Println("\n" + text)
	if *out == "" {
		return nil
	}
	return writeSection(filepath.Join(root, *out), cutTitle, text)
}

// cut moves a workload and breaks something.
func (b *bench) cut(ctx context.Context, do func(context.Context, *lab.Lab) error, move func(*bench, context.Context, *lab.Lab, *process) (*outcome, error)) (e cutEnd, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, p, err := b.workloadOnA(ctx, cutMB)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	defer p.Close()
	b.afterResume = func(pid int) error {
		if err := do(ctx, l); err != nil {
			return err
		}
		if err := rest(ctx, settleFor); err != nil {
			return err
		}
		var err error
		e.onA, e.onB, err = progress(ctx, l, p.Pid, pid)
		return err
	}
	defer func() { b.afterResume = nil }()
	o, err := move(b, ctx, l, &process{mb: cutMB, pid: p.Pid})
	if err != nil && o == nil {
		return e, err
	}
	e.memory = told(ctx, l.B, o.resultOn, o.pid)
	if o.end != nil {
		return e, o.end()
	}
	return e, nil
}

// told ends a workload on h and gives what it says of its memory, in its result on host on.
func told(ctx context.Context, h, on *lab.Host, pid int) string {
	if sh(ctx, h, "kill -TERM "+strconv.Itoa(pid)) != nil {
		return "it is dead"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for lives := true; ; {
		b, err := os.ReadFile(on.Path(resultFile))
		switch {
		case err == nil && bytes.HasSuffix(b, []byte("bad\n")):
			return "**its memory is wrong**"
		case err == nil && bytes.HasSuffix(b, []byte("ok\n")):
			return "its memory is right"
		case !lives:
			return "it dies when it checks its memory"
		case rest(ctx, 50*time.Millisecond) != nil:
			return "it hangs"
		}
		lives = alive(h, pid) == nil // then its last word may have come meanwhile
	}
}

// progress says on which hosts the process is scheduled: its threads sleep and wake 5,000 times a second.
func progress(ctx context.Context, l *lab.Lab, onA, onB int) (a, b bool, err error) {
	a1, b1 := switches(l.A, onA), switches(l.B, onB)
	err = rest(ctx, watchFor)
	return switches(l.A, onA) > a1, switches(l.B, onB) > b1, err
}

// switches is how often a process has given up its CPU; 0: there is none.
func switches(h *lab.Host, pid int) (n int) {
	b, err := os.ReadFile(h.Path(fmt.Sprintf("/proc/%d/status", pid)))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
			n, _ = strconv.Atoi(strings.TrimSpace(v)) // the kernel's own
		}
	}
	return n
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sh(ctx context.Context, h *lab.Host, script string) error {
	if out, err := h.Command(ctx, "/bin/sh", "-c", script).CombinedOutput(); err != nil {
		return said(script, err, out)
	}
	return nil
}
