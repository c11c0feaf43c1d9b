package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/setup"
)

const (
	imagesDir = "/srv/img"
	pagePort  = "27000"
)

// warmCRIU makes image directories, and lets CRIU fill its cache of kernel features on both hosts.
func (b *bench) warmCRIU(ctx context.Context, l *lab.Lab) error {
	for _, h := range []*lab.Host{l.A, l.B} {
		if err := os.MkdirAll(h.Path(imagesDir), 0o755); err != nil {
			return err
		}
		argv := b.argv("check")
		if out, err := h.Command(ctx, argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return said("criu check", err, out)
		}
	}
	return nil
}

// argv starts criu by its own loader, so that its prefix may lie anywhere.
func (b *bench) argv(args ...string) []string {
	if p, ok := setup.PrefixOf(b.criu); ok {
		return p.Argv(args...)
	}
	return append([]string{b.criu}, args...)
}

// running is a criu in a host.
type running struct {
	p    *lab.Proc
	log  string
	what string
}

// start starts criu; ready, if not nil, gets a byte when it is ready for requests.
func (b *bench) start(h *lab.Host, ready *os.File, what string, args ...string) (*running, error) {
	log := filepath.Join(imagesDir, what+".log")
	s := lab.Spawn{Args: b.argv(append([]string{what, "-D", imagesDir, "-o", log, "-v1"}, args...)...)}
	if ready != nil {
		s.Args = append(s.Args, "--status-fd", "3")
		s.Files = []*os.File{nil, nil, nil, ready}
	}
	p, err := h.Spawn(s)
	if err != nil {
		return nil, err
	}
	return &running{p, h.Path(log), "criu " + what}, nil
}

func (r *running) wait(ctx context.Context) error {
	ws, err := r.p.Wait(ctx)
	if err == nil {
		err = statusError(ws)
	}
	return r.why(err)
}

// why adds criu's log to an error.
func (r *running) why(err error) error {
	if err == nil {
		return nil
	}
	log, _ := os.ReadFile(r.log)
	return said(r.what, err, log)
}

// whenReady starts criu and waits until it is ready.
func (b *bench) whenReady(ctx context.Context, h *lab.Host, what string, args ...string) (*running, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer pr.Close()
	r, err := b.start(h, pw, what, args...)
	pw.Close()
	if err != nil {
		return nil, err
	}
	if d, ok := ctx.Deadline(); ok {
		_ = pr.SetReadDeadline(d) // pipes have deadlines
	}
	if _, err := pr.Read(make([]byte, 1)); err != nil {
		r.p.Close()
		return nil, r.why(fmt.Errorf("wait until it is ready: %w", err))
	}
	return r, nil
}

// begin makes both hosts ready and returns what a move of p is measured by.
func (b *bench) begin(ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
	return &outcome{resultOn: l.B, pid: p.pid, bytes: uint64(p.mb) << 20}, b.warmCRIU(ctx, l)
}

// restore runs criu restore to its end.
func (b *bench) restore(ctx context.Context, h *lab.Host, args ...string) error {
	r, err := b.start(h, nil, "restore", slices.Concat(args, []string{"-d", "--manage-cgroups=ignore"}, b.connections())...)
	if err != nil {
		return err
	}
	defer r.p.Close()
	return r.wait(ctx)
}

// restoreWhole restores what has all its memory in its images: when it runs nothing is left to come.
func (b *bench) restoreWhole(ctx context.Context, h *lab.Host, o *outcome) error {
	if err := b.restore(ctx, h); err != nil {
		return err
	}
	o.resumed = time.Now()
	o.drained = o.resumed
	return alive(h, o.pid)
}

// moveByStock is the recipe of CRIU's manual: dump --lazy-pages serves the pages, lazy-pages fetches, restore --lazy-pages.
func (b *bench) moveByStock(ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
	o, err := b.begin(ctx, l, p)
	if err != nil {
		return nil, err
	}
	server := []string{"--address", l.A.Addr, "--port", pagePort}
	dump, err := b.whenReady(ctx, l.A, "dump", slices.Concat(server, []string{"-t", strconv.Itoa(p.pid), "--lazy-pages", "--manage-cgroups=ignore"}, b.connections())...)
	if err != nil {
		return nil, err
	}
	defer dump.p.Close()
	o.frozen = time.Now()
	if err := copyImages(l.A.Path(imagesDir), l.B.Path(imagesDir)); err != nil {
		return nil, err
	}
	if b.rtt > 0 {
		end, err := b.longLine(ctx, l.A, l.A.Addr+":"+delayPort, l.A.Addr+":"+pagePort, b.rtt)
		if err != nil {
			return nil, err
		}
		defer end()
		server[3] = delayPort
	}
	lazy, err := b.whenReady(ctx, l.B, "lazy-pages", append(server, "--page-server")...)
	if err != nil {
		return nil, err
	}
	defer lazy.p.Close()
	if err := b.restore(ctx, l.B, "--lazy-pages"); err != nil {
		return nil, err
	}
	o.resumed = time.Now()
	if b.afterResume != nil { // what stock CRIU's processes say then is not asked
		return o, b.afterResume(o.pid)
	}
	if err := lazy.wait(ctx); err != nil {
		return nil, err
	}
	o.drained = time.Now()
	return o, dump.wait(ctx)
}

// connections is what CRIU has to be told where the tree has connections; lazymig closes them by itself.
func (b *bench) connections() []string {
	if b.cell.workload == "redis" {
		return []string{"--tcp-close"}
	}
	return nil
}

// moveEagerly is the recipe of CRIU's manual without lazy pages, and without images of memory on the source: dump sends pages to a page server.
func (b *bench) moveEagerly(ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
	o, err := b.begin(ctx, l, p)
	if err != nil {
		return nil, err
	}
	server, err := b.whenReady(ctx, l.B, "page-server", "--address", l.B.Addr, "--port", pagePort)
	if err != nil {
		return nil, err
	}
	defer server.p.Close()
	to, port := l.B.Addr, pagePort
	if b.rtt > 0 {
		to, port = l.A.Addr, delayPort
		end, err := b.longLine(ctx, l.A, to+":"+port, l.B.Addr+":"+pagePort, b.rtt)
		if err != nil {
			return nil, err
		}
		defer end()
	}
	dump, err := b.start(l.A, nil, "dump", slices.Concat([]string{"-t", strconv.Itoa(p.pid), "--manage-cgroups=ignore", "--page-server", "--address", to, "--port", port}, b.connections())...)
	if err != nil {
		return nil, err
	}
	defer dump.p.Close()
	if err := dump.wait(ctx); err != nil {
		return nil, err
	}
	o.frozen = time.Now()
	if err := server.wait(ctx); err != nil {
		return nil, err
	}
	if err := copyImages(l.A.Path(imagesDir), l.B.Path(imagesDir)); err != nil {
		return nil, err
	}
	return o, b.restoreWhole(ctx, l.B, o)
}

// moveByPlain dumps all, copies all, restores all.
func (b *bench) moveByPlain(ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
	o, err := b.begin(ctx, l, p)
	if err != nil {
		return nil, err
	}
	dump, err := b.start(l.A, nil, "dump", "-t", strconv.Itoa(p.pid), "--manage-cgroups=ignore")
	if err != nil {
		return nil, err
	}
	defer dump.p.Close()
	if err := dump.wait(ctx); err != nil {
		return nil, err
	}
	o.frozen = time.Now()
	if err := copyImages(l.A.Path(imagesDir), l.B.Path(imagesDir)); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(l.A.Path(imagesDir)); err != nil {
		return nil, err
	}
	return o, b.restoreWhole(ctx, l.B, o)
}

func alive(h *lab.Host, pid int) error {
	outer, err := h.OuterPid(pid)
	if err == nil {
		err = syscall.Kill(outer, 0)
	}
	return err
}
