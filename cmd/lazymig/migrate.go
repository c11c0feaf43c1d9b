package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/ahead"
	"github.com/lazymig/lazymig/hot"
	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/wire"
)

func migrateCommand() *cli.Command {
	return &cli.Command{
		Name:  "migrate",
		Usage: "move a process and its children to another host",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "pid", Usage: "`PID` of the tree's root"},
			&cli.StringFlag{Name: "to", Usage: "agent's `ADDR:PORT`"},
			&cli.StringFlag{Name: "until", Value: migrate.UntilDetached, Usage: "`HOW` far: resumed (it runs there), drained (all memory is there) or detached (its files, too, and nothing of lazymig is left; if that can't be it stays drained, which is an error only if detached was asked for)"},
			&cli.StringSliceFlag{Name: "with", Usage: "a `PATH` that comes along with all that is in it, used or not (repeatable)"},
			&cli.StringSliceFlag{Name: "local", Usage: "a directory `PATH` that is the target's own there (repeatable)"},
			&cli.StringFlag{Name: "mode", Value: migrate.ModePost, Usage: "`HOW` memory gets there: post (after the resume, what is needed first), hybrid (ahead, while the process runs here, and what it wrote since after the resume), pre (ahead, until the rest fits --max-downtime; nothing comes from here after the resume) or stop (all of it before the resume; the pause grows with memory); auto measures writes and line, and says what it has chosen and why"},
			maxDowntimeFlag(),
			&cli.StringFlag{Name: "track", Value: migrate.TrackAuto, Usage: "`HOW` copies that were sent ahead are known to be good: wp (the kernel notes what is written; Linux 6.7), hash (pages are compared while the process stands still; huge pages stay whole) or auto (wp where it can be)"},
			&cli.StringFlag{Name: "hot", Value: hot.Auto, Usage: "`HOW` it is found which pages are in use, which come first: bpf (accessed bits of the page tables), wp (writes), smaps (accessed bits of whole mappings), off, or auto (the first of these that works here)"},
			&cli.StringSliceFlag{Name: "remote", Usage: "a directory `PATH` that stays here: the process goes on using it over the network when all else has moved (repeatable)"},
			&cli.StringFlag{Name: "stdio", Value: migrate.StdioRelay, Usage: "`WHERE` standard streams go that others hold too: relay (to where they went, by the source), journal (the target's), null, or a file on the target"},
			&cli.StringFlag{Name: "on-source-loss", Value: migrate.LossWait, Usage: "`WHAT` is done when this host is gone before all has moved: wait (for ever), or kill the process on the target after --source-loss-after"},
			&cli.DurationFlag{Name: "source-loss-after", Value: 10 * time.Minute, Usage: "how `LONG` this host may be away"},
			&cli.BoolFlag{Name: "unit", Usage: "the process is a service of systemd: keep that from killing or restarting it while it moves, and disable the unit here when it has moved"},
			&cli.BoolFlag{Name: "accept-loss", Usage: "go on although CRIU loses protections (Landlock, MDWE, mseal)"},
			&cli.BoolFlag{Name: "cleartext", Usage: "send pages and files unencrypted, for links that are encrypted already; the agent must run with --allow-cleartext"},
			&cli.BoolFlag{Name: "remove-source-files", Usage: "remove what --with names from here when the process lives on its copies, each of them on the target's disk and compared"},
			&cli.BoolFlag{Name: "in-place", Usage: "put what the process uses, and what --with names, at its own path on the target; what is there already and differs is listed, and nothing happens"},
			&cli.BoolFlag{Name: "overwrite", Usage: "with --in-place: replace what is there"},
			&cli.StringFlag{Name: "bwlimit", Usage: "bytes a second, as `RATE` with K, M or G (1,024s), that memory and files together may take of the line; what a process waits for does not wait, but counts"},
			&cli.StringFlag{Name: "connections", Value: "1", Usage: "over how many connections memory is pushed, `N` up to " + strconv.Itoa(wire.MaxBulk) + ", or auto: one, and more where round trip or CPUs suggest it and as long as each brings more"},
			&cli.StringFlag{Name: "compress", Value: pagesrv.CompressAuto, Usage: "`HOW` memory that is pushed is compressed: auto (by what line and CPU give at the moment), none, s2 or zstd"},
			&cli.BoolFlag{Name: "images-on-disk", Usage: "keep the images, which hold parts of the process's memory, in the state directory until they are sent, not on a tmpfs (the agent has a flag of its own)"},
			stateDirFlag(), tlsDirFlag(), criuFlag(), jsonFlag(),
			&cli.StringFlag{Name: "log", Usage: "`FILE` for the log of the process that serves the tree (default: beside its record)"},
		},
		Action: doMigrate,
	}
}

func maxDowntimeFlag() cli.Flag {
	return &cli.DurationFlag{Name: "max-downtime", Value: 300 * time.Millisecond, Usage: "for --mode pre: what memory may `TAKE` of the pause"}
}

func doMigrate(c *cli.Context) error {
	if err := none(c); err != nil {
		return err
	}
	until := c.String("until")
	if until != migrate.UntilResumed && until != migrate.UntilDrained && until != migrate.UntilDetached {
		return usage("--until %q: resumed, drained or detached", until)
	}
	if m := c.String("mode"); !migrate.CheckMode(m) {
		return usage("--mode %q: auto, post, hybrid, pre or stop", m)
	}
	if t := c.String("track"); !migrate.CheckTrack(t) || t == migrate.TrackWP && !ahead.Supported() {
		return usage("--track %q: auto, hash, or wp where the kernel can (Linux 6.7)", t)
	}
	if h := c.String("hot"); !hot.Check(h) {
		return usage("--hot %q: auto, bpf, wp, smaps or off", h)
	}
	if c.Bool("remove-source-files") && len(c.StringSlice("with")) == 0 {
		return usage("--remove-source-files removes what --with names: there is none")
	}
	if c.Bool("overwrite") && !c.Bool("in-place") {
		return usage("--overwrite needs --in-place")
	}
	remote, err := paths(c)
	if err != nil {
		return err
	}
	if err := address(c, "to"); err != nil {
		return err
	}
	if !c.IsSet("pid") {
		return usage("migrate needs --pid PID")
	}
	if c.Int("pid") < 1 {
		return usage("--pid %d is no process", c.Int("pid"))
	}
	if s := c.String("stdio"); !migrate.CheckStdio(s) {
		return usage("--stdio %q: relay, journal, null, or an absolute path on the target", s)
	}
	if s := c.String("on-source-loss"); !migrate.CheckLoss(s) || c.Duration("source-loss-after") <= 0 {
		return usage("--on-source-loss %q: wait or kill; --source-loss-after is above 0", s)
	}
	limit, err := parseRate(c.String("bwlimit"))
	if err != nil {
		return usage("--bwlimit %q: %v", c.String("bwlimit"), err)
	}
	if err := pagesrv.CheckCompress(c.String("compress")); err != nil {
		return usage("--compress %q: auto, none, s2 or zstd", c.String("compress"))
	}
	connections, err := parseConnections(c.String("connections"))
	if err != nil {
		return usage("--connections %q: auto, or 1 to %d", c.String("connections"), wire.MaxBulk)
	}
	exe, err := self()
	if err != nil {
		return err
	}
	path, prefix, err := criu.Find(c.String("criu"))
	if err != nil {
		return &exitErr{exitPreflight, err}
	}
	id := wire.NewID()
	logTo, err := logFile(c, id)
	if err != nil {
		return err
	}
	defer logTo.Close()
	if !c.IsSet("log") {
		defer migrate.DropLog(c.String("state-dir"), id)
	}
	v, err := migrate.Start(migrate.SourceOptions{
		ID: id, PID: c.Int("pid"), To: c.String("to"), StateDir: c.String("state-dir"), TLSDir: c.String("tls-dir"),
		CRIUPath: path, CRIUPrefix: prefix, AcceptLoss: c.Bool("accept-loss"), Unit: c.Bool("unit"), Cleartext: c.Bool("cleartext"), Stdio: c.String("stdio"), Exe: exe,
		OnSourceLoss: c.String("on-source-loss"), LossAfter: c.Duration("source-loss-after"),
		Mode: c.String("mode"), MaxDowntime: c.Duration("max-downtime"), Track: c.String("track"), Until: until, With: c.StringSlice("with"), Local: c.StringSlice("local"), Remote: remote, RemoveFiles: c.Bool("remove-source-files"), InPlace: c.Bool("in-place"), Overwrite: c.Bool("overwrite"), BwLimit: limit, Compress: c.String("compress"), Hot: c.String("hot"), Connections: connections,
		ImagesOnDisk: c.Bool("images-on-disk"),
	}, logTo)
	if err != nil {
		return err
	}
	defer v.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with the command
		select {
		case <-c.Done():
			_ = v.Abort() // a process that is gone tells so by Next
		case <-stop:
		}
	}()
	return follow(c, v, newPrinter(c.Bool("json")), until)
}

// paths checks what is said about paths, and returns those that stay here.
func paths(c *cli.Context) (remote []string, err error) {
	for _, p := range slices.Concat(c.StringSlice("with"), c.StringSlice("local"), c.StringSlice("remote")) {
		if !filepath.IsAbs(p) {
			return nil, usage("--with, --local and --remote take absolute paths, not %q", p)
		}
	}
	in := func(p, dir string) bool { return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") }
	for _, p := range c.StringSlice("remote") {
		remote = append(remote, filepath.Clean(p))
	}
	if len(remote) > migrate.MaxRemote {
		return nil, usage("%d directories are to stay, and no more than %d can", len(remote), migrate.MaxRemote)
	}
	for i, r := range remote {
		for _, w := range c.StringSlice("with") {
			if in(filepath.Clean(w), r) {
				return nil, usage("--with %s is to come along, and --remote %s to stay", w, r)
			}
		}
		for _, l := range c.StringSlice("local") {
			if l = filepath.Clean(l); in(l, r) || in(r, l) {
				return nil, usage("--local %s is the target's own, and --remote %s this host's: neither can be in the other", l, r)
			}
		}
		for j, o := range remote {
			if i != j && in(o, r) {
				return nil, usage("--remote %s is in --remote %s", o, r)
			}
		}
	}
	return remote, nil
}

// logFile is where the source's process logs; it outlives this command.
func logFile(c *cli.Context, id wire.ID) (*os.File, error) {
	p := c.String("log")
	if p == "" {
		if err := os.MkdirAll(c.String("state-dir"), 0o700); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
		p = migrate.LogPath(c.String("state-dir"), id)
	}
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// follow prints events until the one that the user waits for. After the handover an interrupt ends the view only.
func follow(c *cli.Context, v *migrate.View, p *printer, until string) error {
	handed := false
	for {
		e, err := v.Next()
		if errors.Is(err, migrate.ErrSourceGone) {
			if handed || v.Handed() {
				return &exitErr{exitHanded, fmt.Errorf("%w after the handover; see `lazymig recover`", err)}
			}
			return &exitErr{exitRunning, fmt.Errorf("%w before the handover: the tree runs as before", err)}
		}
		if err != nil {
			return err
		}
		p.print(e)
		switch e.Event {
		case "resumed":
			handed = true
			if until == migrate.UntilResumed {
				return nil
			}
		case "done":
			if len(e.Stays) > 0 && c.IsSet("until") {
				return &exitErr{exitHanded, fmt.Errorf("the process is not detached: %s; it runs on the target, its files are served from here", strings.Join(e.Stays, "; "))}
			}
			if len(e.Residual) > len(c.StringSlice("remote")) && c.IsSet("until") {
				return &exitErr{exitHanded, fmt.Errorf("the process is not wholly detached, it needs this host for: %s", strings.Join(e.Residual, "; "))}
			}
			return nil
		case "exited":
			return nil
		case "failed":
			return failure(e)
		}
		if c.Err() != nil && (handed || v.Handed()) {
			return fmt.Errorf("the view ends; migration %s goes on, see `lazymig status %s`", e.ID, e.ID)
		}
	}
}

func failure(e migrate.Event) error {
	err := fmt.Errorf("%s failed: %s (source: %s)", e.Stage, e.Error, e.SourceState)
	switch {
	case e.Stage == "preflight":
		return &exitErr{exitPreflight, err}
	case e.SourceState == "running":
		return &exitErr{exitRunning, err}
	}
	return &exitErr{exitHanded, err}
}

// printer shows events to people or programs.
type printer struct {
	json bool
	out  io.Writer
	bar  bool // the last line is a bar
	view drainView
}

func newPrinter(asJSON bool) *printer { return &printer{json: asJSON, out: os.Stdout} }

func (p *printer) print(e migrate.Event) {
	if p.json {
		b, err := json.Marshal(e)
		if err != nil {
			panic(err) // own type
		}
		fmt.Fprintln(p.out, string(b))
		return
	}
	switch e.Event {
	case "progress":
		if line := p.view.progress(e); line != "" {
			p.live(line)
		}
		return
	case "files":
		p.live(fmt.Sprintf("  files: %d here, %d to come, %d MB", e.FilesHere, e.FilesLeft, e.FileBytes>>20))
		return
	}
	if p.bar {
		fmt.Fprintln(p.out)
		p.bar = false
	}
	switch e.Event {
	case "prepared":
		fmt.Fprintf(p.out, "migration %s: both hosts are ready\n", e.ID)
	case "notice":
		fmt.Fprintf(p.out, "  note: %s\n", e.Text)
	case "chosen":
		fmt.Fprintf(p.out, "  mode %s: %s\n", e.Mode, e.Text)
		if e.Forecast != nil {
			fmt.Fprintf(p.out, "    expected: %s\n", e.Forecast)
		}
	case "ahead":
		p.ahead(e)
	case "frozen":
		p.view.begin(e)
		fmt.Fprintln(p.out, "  frozen")
	case "resumed":
		p.view.begin(e)
		fmt.Fprintf(p.out, "  resumed on the target as PID %d; frozen for %.1f ms (± %.1f): dump %.1f, transfer %.1f, restore %.1f,%s handover %.1f\n",
			e.TargetPID, e.DowntimeMS, e.ClockErrMS, e.DumpMS, e.TransferMS, e.RestoreMS, filled(e.FillMS), e.GrantMS)
		if e.TCPClosed > 0 {
			fmt.Fprintf(p.out, "  %d established TCP connections are closed on the target\n", e.TCPClosed)
		}
	case "drained":
		if e.FillMS > 0 { // all was there before
			break
		}
		fmt.Fprintf(p.out, "  drained in %.2f s: %d MB at %.0f MB/s; %d faults, p50 %.0f µs, p99 %.0f µs%s; %d files forwarded\n",
			e.DrainMS/1000, e.MemoryBytes>>20, float64(e.MemoryBytes)/1e6/(e.DrainMS/1000), e.Faults, e.FaultP50US, e.FaultP99US, stalled(e)+inUse(e)+prefetched(e), e.Forwarded)
	case "stays":
		fmt.Fprintln(p.out, "  it stays with the source's files, which are served on:")
		for _, r := range e.Stays {
			fmt.Fprintf(p.out, "    %s\n", r)
		}
	case "detached":
		fmt.Fprintf(p.out, "  detached: stopped for %.1f ms, %d descriptors and %d mappings put on %d files (%d MB); residual dependency: %s\n",
			e.StopMS, e.Descriptors, e.Mappings, e.FilesMoved, e.FileBytes>>20, cmp.Or(strings.Join(e.Residual, "; "), "none"))
		if len(e.Places) > 0 {
			fmt.Fprintf(p.out, "  in place on the target: %s\n", strings.Join(e.Places, ", "))
		}
		for _, a := range e.Aside {
			fmt.Fprintf(p.out, "    not in place: %s\n", a)
		}
		if e.Removed > 0 || len(e.Kept) > 0 {
			fmt.Fprintf(p.out, "  %d files removed from here\n", e.Removed)
		}
		for _, k := range e.Kept {
			fmt.Fprintf(p.out, "    kept: %s\n", k)
		}
	case "done":
		if e.Forecast != nil {
			fmt.Fprintf(p.out, "  was:      %s: frozen for %.0f ms, %.1f s before and %.1f s after that, %d MB sent\n  expected: %s\n", e.Mode, e.DowntimeMS, e.AheadMS/1000, e.DrainMS/1000, e.BytesSent>>20, e.Forecast)
		}
	case "exited":
		fmt.Fprintf(p.out, "  the process has ended on the target (wait status %d)\n", *e.Status)
	case "failed": // the error that the command returns tells it
	}
}

// ahead tells of memory that comes while the process runs here.
func (p *printer) ahead(e migrate.Event) {
	if e.AheadMS == 0 {
		return // a round of several
	}
	fmt.Fprintf(p.out, "  copied ahead in %.2f s, %d rounds: %d MB; %s\n", e.AheadMS/1000, e.Rounds, e.AheadBytes>>20, e.Text)
}

// filled is the time for memory that came before the resume.
func filled(ms float64) string {
	if ms == 0 {
		return ""
	}
	return fmt.Sprintf(" memory %.1f,", ms)
}

func inUse(e migrate.Event) string {
	if e.HotFirst == 0 {
		return ""
	}
	return fmt.Sprintf(", %d MB in use came first (%s)", e.HotFirst>>20, e.Hot)
}

func prefetched(e migrate.Event) string {
	if e.Prefetched == 0 {
		return ""
	}
	return fmt.Sprintf(", %d pages prefetched (%d %% of them met)", e.Prefetched, 100*e.PrefetchHit/e.Prefetched)
}

// live replaces the line that was printed last.
func (p *printer) live(line string) {
	fmt.Fprintf(p.out, "\r%-*s", p.view.wide(line), line)
	p.bar = true
}
