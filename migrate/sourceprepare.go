package migrate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/pagesrv"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

func (s *Source) preflight(ctx context.Context) error {
	rep, err := preflight.Process(ctx, preflight.Options{PID: s.opt.PID, AcceptLoss: s.opt.AcceptLoss, Log: s.log})
	if err != nil {
		return err
	}
	s.rep = rep
	for _, f := range rep.Findings {
		if f.Level == preflight.Warn && !s.told(f) {
			s.notice("%s: %s %s", f.What, f.Why, f.Do)
		}
	}
	if err := errors.Join(rep.Err(), preflight.Refusals(Streams(&rep.Want)), s.checkRemote(), s.checkUnit()); err != nil {
		return err
	}
	s.log.Info("migration begins", "audit", true, "to", s.opt.To, "pid", s.opt.PID, "comm", rep.Tree.Tasks[0].Comm, "by", loginUser())
	return nil
}

// loginUser is who has logged in to become root and start this; -1: nobody has.
func loginUser() int64 {
	b, err := os.ReadFile("/proc/self/loginuid")
	if err != nil {
		return -1 // a kernel without audit
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || n == math.MaxUint32 {
		return -1
	}
	return n
}

// limit is a cgroup limit as its file takes it; empty: none.
func limit(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

// groupIDs are the session and process group of a task, in its own PID namespace: they must be free on the target, too.
func groupIDs(pid int) []int32 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil // it has ended; the freeze tells
	}
	var ids []int32
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "NSpgid:" && f[0] != "NSsid:" {
			continue
		}
		if n, err := strconv.ParseInt(f[len(f)-1], 10, 32); err == nil && n > 0 {
			ids = append(ids, int32(n))
		}
	}
	return ids
}

var errNoCleartext = errors.New("the agent takes no pages and files without encryption: start it with --allow-cleartext, or migrate without --cleartext")

func (s *Source) prepare(ctx context.Context) error {
	k, err := keys.Load(s.opt.TLSDir)
	if err != nil {
		return err
	}
	s.d = &dialer{addr: s.opt.To, keys: k.Since(time.Now()), id: s.opt.ID, token: newToken(), cleartext: s.opt.Cleartext}
	c, err := s.d.dial(ctx, wire.LaneControl)
	if err != nil {
		return err
	}
	s.sess = newSession(c, nil)
	if s.opt.Cleartext && !s.d.clearLanes() {
		return stage("preflight", errNoCleartext)
	}
	if err := s.compare(ctx); err != nil {
		return err
	}
	if s.clock, err = measureClock(ctx, s.sess); err != nil {
		return err
	}
	if s.rec, err = NewRecord(s.opt.StateDir, s.opt.ID, Entry{State: Prepare, Side: SideSource, Peer: s.opt.To, PID: s.opt.PID}); err != nil {
		return err
	}
	s.mu.Lock()
	s.state = Prepare
	s.mu.Unlock()
	if err := s.rec.lock(); err != nil {
		return err
	}
	if s.onRecord != nil {
		if err := s.onRecord(); err != nil {
			return err
		}
	}
	if s.warden, err = startWardens(s.opt.Exe, s.opt.StateDir, s.opt.ID, s.log); err != nil {
		return err
	}
	if s.view != nil {
		if err := s.warden.keep(keptView, nil, s.view); err != nil {
			return err
		}
	}
	if err := s.serve(); err != nil {
		return err
	}
	want := &s.rep.Want
	if s.dump, err = dump.Prepare(ctx, dump.Options{
		PID: s.opt.PID, CriuPath: s.opt.CRIUPath, CriuPrefix: s.opt.CRIUPrefix, ID: s.opt.ID, Log: s.log,
		TCPClose: want.TCPClose, ShellJob: want.ShellJob, GhostLimit: want.GhostLimit,
		Datagrams:   len(want.Datagrams) > 0,
		EagerShared: s.eagerShared,
		Disk:        onDisk(s.opt.ImagesOnDisk, s.rec.Dir),
		External:    s.stdioExternal(),
		GrantRecord: filepath.Join(s.rec.Dir, "record"), GrantMark: grantMark,
		KeeperArgv: []string{s.opt.Exe, dump.KeeperArg},
	}); err != nil {
		return fmt.Errorf("prepare dump: %w", err)
	}
	tree := &s.rep.Tree
	host, _ := os.Hostname() // for people
	m := prepareMsg{
		Host: host, HostName: tree.HostName, Memory: tree.MemoryPresent, Comm: tree.Tasks[0].Comm, Token: s.d.token,
		OnSourceLoss: s.opt.OnSourceLoss, LossAfterMS: s.opt.LossAfter.Milliseconds(),
		Cleartext: s.opt.Cleartext,
		Until:     s.opt.Until, With: s.opt.With, Local: s.opt.Local, Remote: s.opt.Remote, RemoveFiles: s.opt.RemoveFiles,
		InPlace: s.opt.InPlace, Overwrite: s.opt.Overwrite,
		CPUMax: tree.Cgroup.CPUMax, MemoryMax: limit(tree.Cgroup.MemoryMax), PidsMax: limit(tree.Cgroup.PidsMax),
		Datagrams: want.Datagrams,
	}
	if s.opt.InPlace {
		m.UsesDirs, m.UsesFiles = s.uses()
	}
	m.Parts = pagesrv.MaxParts
	m.Connections, m.MostConnections = bulkLanes(s.opt.Connections, 2*s.clock.err, runtime.NumCPU())
	if len(s.rep.Want.Stdio) > 0 {
		m.Stdio = s.opt.Stdio
	}
	for _, t := range s.dump.Tasks() {
		m.PIDs = append(m.PIDs, groupIDs(t.PID)...)
		for _, tid := range t.TIDs {
			m.PIDs = append(m.PIDs, int32(tid))
		}
	}
	if err := s.sess.send(wire.MsgPrepare, m); err != nil {
		return err
	}
	var there conflictsMsg
	if err := s.sess.await(ctx, wire.MsgPrepared, &there, prepareTime+dialTimeout, s.dialed); err != nil {
		return err
	}
	if err := checkConflicts(there); err != nil {
		return stage("preflight", err)
	}
	s.event(Event{Event: "prepared"})
	if s.opt.Cleartext {
		s.notice("pages and files go over the network unencrypted (--cleartext): whoever is on the path can read and change them")
	}
	return nil
}

// serve makes the file server; it answers as soon as the target has dialed its lane, even before the freeze.
func (s *Source) serve() error {
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", s.opt.PID), unixOPath, 0)
	if err != nil {
		return fmt.Errorf("open root of the tree: %w", err)
	}
	defer root.Close()
	if s.files, err = remotefs.NewServer(remotefs.ServerOptions{Root: root, Groups: s.rep.Tree.Groups, Log: s.log, Writers: s.writers, Budget: s.budget}); err != nil {
		return err
	}
	s.seed()
	s.startJournal()
	if s.guest, err = startGuest(s.opt.Exe, s.opt.PID); err != nil || s.guest == nil {
		return err
	}
	return s.warden.keep(keptGuest, nil, s.guest.life)
}

// servePages makes the page server, of exactly the tasks that were dumped; lanes that have been dialed wait for it.
func (s *Source) servePages() error {
	var tasks []pagesrv.Task
	for _, t := range s.result.Tasks {
		tasks = append(tasks, pagesrv.Task{ID: t.ID, PID: t.PID})
	}
	objects, err := s.openObjects()
	if err != nil {
		return err
	}
	if s.pages, err = pagesrv.NewServer(pagesrv.ServerOptions{Tasks: tasks, Objects: objects, Log: s.log, Budget: s.budget, Compress: s.opt.Compress}); err != nil {
		return err
	}
	close(s.pagesReady)
	return nil
}

// openObjects opens the shared memory that is to be served; from then on it lives as long as its server.
func (s *Source) openObjects() ([]pagesrv.Object, error) {
	var list []pagesrv.Object
	for _, o := range s.result.Objects {
		f, err := o.Open()
		if err != nil {
			for _, o := range list {
				o.File.Close()
			}
			return nil, err
		}
		list = append(list, pagesrv.Object{ID: o.ID, File: f})
	}
	return list, nil
}
