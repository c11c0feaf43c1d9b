package migrate

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/wire"
)

// SourceArg is the hidden subcommand that runs SourceMain.
const SourceArg = "source"

// viewMsg is what a view says to the source's process.
type viewMsg struct {
	Op      string         `json:"op"` // begin, abort
	Options *SourceOptions `json:"options,omitempty"`
}

// View follows a migration that a process of its own carries out: it may go away at any time. Before the grant that
// aborts; after it nothing changes.
type View struct {
	opt  SourceOptions
	sock *fdpass.Socket
	cmd  *exec.Cmd
	buf  []byte
}

// Start starts the source's process, in a session of its own so that a terminal's signals do not reach it.
func Start(opt SourceOptions, logTo *os.File) (*View, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start source process: %w", err)
	}
	defer peer.Close()
	cmd := exec.Command(opt.Exe, SourceArg)
	cmd.ExtraFiles = []*os.File{peer}
	cmd.Dir = "/"
	cmd.Stderr = logTo
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		sock.Close()
		return nil, fmt.Errorf("start source process: %w", err)
	}
	v := &View{opt: opt, sock: sock, cmd: cmd, buf: make([]byte, fdpass.MaxMessage)}
	if err := sock.Send(encode(viewMsg{Op: "begin", Options: &opt})); err != nil {
		v.Close()
		return nil, fmt.Errorf("start source process: %w", err)
	}
	return v, nil
}

// ErrSourceGone says that the source's process has ended.
var ErrSourceGone = errors.New("the source's process has ended")

// Next waits for the next event.
func (v *View) Next() (Event, error) {
	n, files, err := v.sock.Recv(v.buf)
	fdpass.CloseAll(files)
	if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		return Event{}, ErrSourceGone
	}
	if err != nil {
		return Event{}, err
	}
	var e Event
	if err := json.Unmarshal(v.buf[:n], &e); err != nil {
		return Event{}, fmt.Errorf("decode event: %w", err)
	}
	return e, nil
}

// Handed says whether the grant is on disk, for when the process can't be asked any more. A record that can't be read may say so.
func (v *View) Handed() bool {
	k, err := find(v.opt.StateDir, v.opt.ID, SideSource)
	return err != nil && !errors.Is(err, os.ErrNotExist) || k.Last().State.Handed()
}

// Abort asks for the end of a migration; the answer is an event: failed, or a notice that it is too late.
func (v *View) Abort() error { return v.sock.Send(encode(viewMsg{Op: "abort"})) }

// Close ends the view. The process goes on if the grant has been given, else it aborts.
func (v *View) Close() { v.sock.Close() }

// Wait waits for the process's end.
func (v *View) Wait() error { return v.cmd.Wait() }

// SourceMain is the process: it carries one migration out, tells its view, and answers on a control socket.
func SourceMain(log *slog.Logger) error {
	if err := confine.Stage(sourceLimits()); err != nil {
		return err
	}
	unix.CloseOnExec(3)
	if len(os.Args) > 2 && os.Args[2] == resumeArg {
		return resumeMain(log)
	}
	file := os.NewFile(3, "view")
	view, err := dupFile(file)
	if err != nil {
		return err
	}
	defer view.Close()
	sock, err := fdpass.New(file)
	if err != nil {
		return err
	}
	defer sock.Close()
	buf := make([]byte, fdpass.MaxMessage)
	n, files, err := sock.Recv(buf)
	fdpass.CloseAll(files)
	if err != nil {
		return fmt.Errorf("read what to do: %w", err)
	}
	var m viewMsg
	if err := json.Unmarshal(buf[:n], &m); err != nil || m.Options == nil {
		return fmt.Errorf("read what to do: unexpected message %q", buf[:n])
	}
	raiseFiles()
	v := &viewEnd{sock: sock}
	s := NewSource(*m.Options, v.emit, log)
	s.view = view
	return v.run(s, func() error { return s.Run(context.Background()) })
}

// viewEnd is the source's end of its view.
type viewEnd struct {
	mu   sync.Mutex
	sock *fdpass.Socket // nil: nobody follows
}

func (v *viewEnd) emit(e Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sock != nil {
		_ = v.sock.Send(encode(e)) // a view that is gone misses it; the record does not
	}
}

// run runs the migration while its view and the control socket are listened to.
func (v *viewEnd) run(s *Source, f func() error) error {
	ctl := newControl(s, s.log)
	defer ctl.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	if v.sock != nil {
		defer v.sock.Close()
		wg.Go(func() {
			buf := make([]byte, fdpass.MaxMessage)
			for {
				n, files, err := v.sock.Recv(buf)
				fdpass.CloseAll(files)
				var m viewMsg
				if err != nil {
					_ = s.Abort("by its view") // handed over: then the view's end changes nothing
					return
				}
				if json.Unmarshal(buf[:n], &m) == nil && m.Op == "abort" {
					if err := s.Abort("by its view"); err != nil {
						s.notice("%v", err) // it waits for an answer
					}
				}
			}
		})
	}
	return f()
}

// Abort gives up if the grant has not been given; an error says why not.
func (s *Source) Abort(who string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Handed() {
		return fmt.Errorf("migration %v has been handed over: the tree belongs to %s now", s.opt.ID, s.opt.To)
	}
	if s.abort != nil {
		s.abort(fmt.Errorf("%w %s", errAborted, who))
	}
	return nil
}

// Status is what `lazymig status` shows of a migration that is being carried out.
type Status struct {
	State     State     `json:"state"`
	LeftBytes uint64    `json:"left_bytes"`
	Faults    uint64    `json:"faults"`
	AwaySince time.Time `json:"away_since,omitzero"` // the target does not answer since then
	Error     string    `json:"error,omitempty"`

	OnSourceLoss string   `json:"on_source_loss,omitempty"` // on the target: AwaySince is of the source
	Streams      bool     `json:"streams,omitempty"`        // standard streams are carried
	Residual     []string `json:"residual,omitempty"`       // what the tree needs from the source when all else is on the target; else State tells
}

// Status tells where it stands.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Status{State: s.state, LeftBytes: s.last.Left, Faults: s.last.Faults, AwaySince: s.since, Residual: s.residual, Streams: s.carries}
}

// control answers status and abort on STATE-DIR/ID.source/control, one JSON line each way. The socket's directory is mode 0700.
type control struct {
	s   *Source
	log *slog.Logger
	ln  net.Listener
	wg  sync.WaitGroup
	mu  sync.Mutex
}

func newControl(s *Source, log *slog.Logger) *control {
	c := &control{s: s, log: log}
	s.onRecord = c.open
	return c
}

// open listens, once the record's directory is there.
func (c *control) open() error {
	// A path may be longer than a socket address holds (108 bytes): bind it relative to its directory's descriptor.
	dir, err := os.Open(c.s.rec.Dir)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/control", dir.Fd())
	_ = os.Remove(path) // of a process that was killed; the record's lock says that there is no other
	ln, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	c.mu.Lock()
	c.ln = ln
	c.mu.Unlock()
	c.wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				c.log.Warn("control socket", "err", err)
				time.Sleep(backoffMin) //nolint:forbidigo // out of descriptors: others may close some
				continue
			}
			c.wg.Go(func() { c.answer(nc) })
		}
	})
	return nil
}

func (c *control) answer(nc net.Conn) {
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(silence))
	line, err := bufio.NewReader(nc).ReadBytes('\n')
	if err != nil {
		return
	}
	var m viewMsg
	var st Status
	switch err := json.Unmarshal(line, &m); {
	case err != nil:
		st.Error = err.Error()
	case m.Op == "abort":
		err := c.s.Abort("by lazymig abort")
		st = c.s.Status()
		if err != nil {
			st.Error = err.Error()
		}
	default:
		st = c.s.Status()
	}
	_, _ = nc.Write(append(encode(st), '\n')) // who asked may be gone
}

func (c *control) close() {
	c.mu.Lock()
	ln := c.ln
	c.mu.Unlock()
	if ln != nil {
		ln.Close()
		_ = os.Remove(filepath.Join(c.s.rec.Dir, "control")) // a stale socket is refused, that is all
	}
	c.wg.Wait()
}

// Ask sends op (status, abort) to the process that carries a migration out.
func Ask(stateDir string, id wire.ID, op string) (Status, error) {
	var st Status
	dir, err := os.Open(recordDir(stateDir, id, SideSource))
	if err != nil {
		return st, fmt.Errorf("ask migration %v: %w", id, err)
	}
	defer dir.Close()
	nc, err := net.DialTimeout("unix", fmt.Sprintf("/proc/self/fd/%d/control", dir.Fd()), silence)
	if err != nil {
		return st, fmt.Errorf("ask migration %v: its process on this host does not answer: %w", id, err)
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(silence))
	if _, err := nc.Write(append(encode(viewMsg{Op: op}), '\n')); err != nil {
		return st, fmt.Errorf("ask migration %v: %w", id, err)
	}
	line, err := bufio.NewReader(nc).ReadBytes('\n')
	if err != nil {
		return st, fmt.Errorf("ask migration %v: %w", id, err)
	}
	if err := json.Unmarshal(line, &st); err != nil {
		return st, fmt.Errorf("ask migration %v: %w", id, err)
	}
	if st.Error != "" {
		return st, errors.New(st.Error)
	}
	return st, nil
}
