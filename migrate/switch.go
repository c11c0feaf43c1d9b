package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/restore/detach"
)

// SwitchMain is the hidden subcommand detach.Arg: the process that puts a tree on its files. It may be parked at switch-POINT.
func SwitchMain(log *slog.Logger) error {
	return detach.Main(log.With("process", detach.Arg), func(point string) { park.At(log, "switch-"+point) })
}

// switchedName is in the record's directory from the moment when the tree is on its files to the record's "detached".
const switchedName = "switched"

// switchApart switches once.
func (t *Target) switchApart(ctx context.Context, dev uint64) (*detachedMsg, error) {
	procs, err := t.capsule.TreeProcs()
	if err != nil {
		return nil, err
	}
	defer procs.Close()
	group, err := t.capsule.HelperGroup()
	if err != nil {
		return nil, err
	}
	defer group.Close()
	streams, left, err := t.stdio.give(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, s := range streams {
			s.File.Close()
		}
	}()
	out, err := detach.Apart{
		Start: t.a.free.Start, Group: procs, Cgroup: group, MountNS: t.capsule.PID(), Dev: dev, Remote: t.msg.Remote, Streams: streams, Log: t.log,
		Outcome: filepath.Join(t.rec.Dir, switchedName),
		Hold:    []*os.File{t.rec.f}, // the record stays locked until the switch is over: until then no other agent takes the migration up
		Settle: func(ctx context.Context, inodes []uint64) (detach.Settled, error) {
			m := detachedMsg{Connection: unix.Minor(dev), Residual: t.residual(left > 0)}
			s, err := t.settle(ctx, inodes, &m)
			if err == nil && len(streams) > 0 {
				err = t.stdio.empty(ctx)
			}
			if err == nil {
				m.Places, m.Aside, err = t.place(&s.Local)
			}
			s.Note = encode(m)
			return s, err
		},
	}.Switch(ctx)
	if _, broken := errors.AsType[*detach.Broken](err); err != nil && !broken {
		return nil, errors.Join(err, t.takeBack())
	}
	if err != nil {
		return nil, err
	}
	return switchedMsg(&out)
}

// settle brings the last bytes over while the tree is stopped.
func (t *Target) settle(ctx context.Context, inodes []uint64, m *detachedMsg) (l detach.Settled, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, errors.New("the source does not answer"))
	defer cancel()
	st, err := t.fuse.storeSettle(ctx)
	if err != nil {
		return l, err
	}
	if err := undecided(st.Undecided); err != nil {
		return l, err
	}
	m.Files, m.Bytes, m.Root = st.Files, st.Bytes, st.Plan.Root
	l.Root = st.Plan.Root
	for _, b := range st.Plan.Binds {
		l.Binds = append(l.Binds, detach.Bind{Path: b.Path, Target: b.TargetPath})
	}
	l.Files, err = t.fuse.storeLocal(ctx, inodes)
	return l, err
}

func switchedMsg(o *detach.Outcome) (*detachedMsg, error) {
	var m detachedMsg
	if err := json.Unmarshal(o.Note, &m); err != nil {
		return nil, fmt.Errorf("read outcome of the switch: %w", err)
	}
	r := o.Report
	m.StopMS, m.SettleMS, m.Descriptors, m.Mappings, m.Connected = r.StopMS, r.SettleMS, r.Descriptors, r.Mappings, r.Connected
	return &m, nil
}

// readSwitched is what a switch came to whose agent has died before its record said so; nil: nothing.
func readSwitched(dir string, log *slog.Logger) *detachedMsg {
	o, err := detach.ReadOutcome(filepath.Join(dir, switchedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m *detachedMsg
	if err == nil {
		m, err = switchedMsg(o)
	}
	if err != nil {
		log.Error("outcome of a switch", "err", err)
		return nil
	}
	return m
}

func forgetSwitched(dir string, log *slog.Logger) {
	if err := os.Remove(filepath.Join(dir, switchedName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Error("remove outcome of a switch", "err", err)
	}
}

func filesAt(m *detachedMsg) string {
	at := "files at " + m.Root
	if len(m.Places) > 0 {
		at += " and in place, at " + strings.Join(m.Places, ", ")
	}
	return at
}
