package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/wire"
)

const prepareTime = 30 * time.Second // lanes dialed, root mounted

// prepare makes FUSE daemon, capsule and handler; the lanes that they need are asked for on c.
func (t *Target) prepare(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeoutCause(ctx, prepareTime, errors.New("not prepared in time: lanes or FUSE root do not answer"))
	defer cancel()
	opt := &t.a.opt
	err := checkJournal(t.msg.Stdio)
	if err != nil {
		return err
	}
	if t.tmp, err = images.MakeDir(imagesName(t.id), onDisk(opt.ImagesOnDisk, t.rec.Dir)); err != nil {
		return err
	}
	t.sink = newImageSink(t.tmp)
	t.ahead = newAheadSink(t.a.aheadRoom())
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open /dev/fuse (is the fuse module there?): %w", err)
	}
	defer dev.Close()
	lc := laneConfig{ID: t.id, Token: t.msg.Token, TLSDir: opt.TLSDir, Allow: opt.Allow, Since: t.began}
	fuse, err := startFuseDaemon(t.a.free.Start, fuseConfig{laneConfig: lc, StoreDir: t.rec.Dir, Local: localFiles(), Stream: t.a.opt.StreamWrites}, dev,
		func() { t.ask(wire.LaneFiles) }, t.log)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.fuse = fuse
	t.mu.Unlock()
	if err := s.send(wire.MsgDial, dialMsg{Lanes: []wire.Lane{wire.LaneFiles}}); err != nil {
		return fmt.Errorf("ask for lanes: %w", err)
	}
	if err := fuse.await(ctx, "ready"); err != nil {
		return fmt.Errorf("start FUSE daemon: %w", err)
	}
	t.capsule, err = restore.Start(ctx, restore.Options{
		ID: t.id, Free: t.a.free, Dir: t.rec.Dir, CriuPrefix: opt.CRIUPref, CriuPath: opt.CRIUPath, ImagesDir: t.tmp, Fuse: dev,
		Hostname: t.msg.HostName, PIDs: t.msg.PIDs, Datagrams: t.msg.Datagrams,
		MemoryMax: t.msg.MemoryMax, CPUMax: t.msg.CPUMax, PidsMax: t.msg.PidsMax, Log: t.log,
	})
	if err != nil {
		return fmt.Errorf("make capsule: %w", err)
	}
	handler, err := t.capsule.StartHandler(ctx, t.handlerOptions())
	if err != nil {
		return fmt.Errorf("start handler: %w", err)
	}
	t.mu.Lock()
	t.handler = handler
	t.mu.Unlock()
	if err := t.awaitLanes(ctx, s); err != nil {
		return err
	}
	return t.fuse.awaitClosed(ctx, t.fuse.seeded)
}

func (t *Target) handlerOptions() restore.HandlerOptions {
	return restore.HandlerOptions{
		TLSDir: t.a.opt.TLSDir, Token: t.msg.Token, Allow: t.a.opt.Allow, Since: t.began, Connections: t.msg.Connections, MostConnections: t.msg.MostConnections,
		OnLaneLost: func(l wire.Lane) { t.ask(l) },
	}
}

// awaitLanes asks for the lanes that the handler wants and waits until both are given: CRIU's restore itself needs pages.
func (t *Target) awaitLanes(ctx context.Context, s *session) error {
	missing := map[wire.Lane]bool{wire.LaneUrgent: true, wire.LaneBulk: true}
	for len(missing) > 0 {
		select {
		case <-t.lanes.some:
			ask, come := t.lanes.take()
			for _, l := range come {
				delete(missing, l)
			}
			if len(ask) == 0 {
				continue
			}
			if err := s.send(wire.MsgDial, dialMsg{Lanes: ask}); err != nil {
				return fmt.Errorf("ask for lanes: %w", err)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// localFiles are served by the target until the grant: CRIU's cache of what the kernel can do, which saves 30 ms.
func localFiles() map[string][]byte {
	b, err := os.ReadFile("/run/criu.kdat")
	if err != nil || len(b) > 64<<10 {
		return nil
	}
	return map[string][]byte{"/run/criu.kdat": b}
}

// imagesName begins the name of a migration's directory of images.
func imagesName(id wire.ID) string { return "lazymig-" + id.String()[:8] + "-" }

// onDisk is where images go if they may go to a disk, beside the record: what is left there goes with it.
func onDisk(may bool, dir string) string {
	if may {
		return dir
	}
	return ""
}

const cleanAgain = time.Second

// cleanUp is cleanup until nothing is left: what keeps it from that (no descriptor is left, say) may pass. If the agent ends before, the next one
// sweeps.
func (t *Target) cleanUp() error {
	for {
		err := t.cleanup()
		if err == nil || t.keep {
			return err
		}
		again := time.After(cleanAgain)
		for waiting := true; waiting; {
			select {
			case s := <-t.sessions: // a source that asks how it stands: later
				s.close()
			case <-again:
				waiting = false
			case <-t.stop:
				return err
			}
		}
	}
}

// cleanup leaves nothing behind but the record.
func (t *Target) cleanup() error {
	t.stopDetach()
	t.ahead.close()
	if t.keep {
		return nil
	}
	var errs []error
	// The daemon first: with it /dev/fuse is closed, and that ends all that waits for an answer. A process that waits for one can't
	// even be killed (fs/fuse/dev.c, request_wait_answer).
	if t.fuse != nil {
		t.fuse.Close()
	}
	if t.capsule != nil {
		if err := t.capsule.Close(); err != nil {
			t.log.Error("take capsule away", "err", err)
			errs = append(errs, err)
		}
	}
	if t.tmp != "" {
		if err := os.RemoveAll(t.tmp); err != nil {
			t.log.Error("remove images", "err", err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
