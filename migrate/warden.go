package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// WardenArg is the hidden subcommand that runs WardenMain.
const WardenArg = "warden"

// The warden is a process beside the source's own that holds what would be lost with it: the file server's state (remotefs.Standby), the relay of standard
// streams, and copies of descriptors. When the source's process dies after the grant, the warden starts another, which gets all that. A warden that
// dies alone is followed by a spare one (wardens.go). When it dies before, the keeper (package dump)
// thaws the tree, and the warden tells the target that nothing will be granted. What the two say to each other, beside the journal of remotefs and the
// messages about streams: one datagram each.
const (
	wardenKeep    = 100 // both ways: keptMsg; descriptors
	wardenStreams = 101 // to the warden: []streamSpec; a descriptor each
	wardenOver    = 102 // to the warden: nothing is to be gone on with
	wardenHanded  = 103 // to the source: this was all; handedMsg
	wardenUse     = 104 // to the warden: it is in use from now on, and starts a spare one
	wardenSpare   = 105 // to the source: the spare one's socket
)

// keptMsg is something that the warden keeps under a name. A later one of the same name adds to it.
type keptMsg struct {
	Name string          `json:"name"`
	Data json.RawMessage `json:"data,omitempty"`
}

// Names of what is kept.
const (
	keptView  = "view"  // the socket to whoever follows the migration
	keptGuest = "guest" // keeps the capsule of a tree that came by a migration
	keptFiles = "files" // copies of the tree's descriptors, from drained on; data: heldFiles
)

type handedMsg struct {
	Streams bool `json:"streams"` // the relay runs
}

// streamSpec is one direction of a standard stream.
type streamSpec struct {
	Stream uint32 `json:"stream"`
	Out    bool   `json:"out"` // read here, and sent
	Socket bool   `json:"socket"`
	Sole   bool   `json:"sole"`
}

// kept is what a warden has under one name.
type kept struct {
	data  []json.RawMessage
	files []*os.File
}

// warden is the process.
type warden struct {
	log   *slog.Logger
	dir   string // state directory
	id    wire.ID
	sock  *fdpass.Socket
	files remotefs.Standby
	kept  map[string]*kept
	relay *relay
	used  bool
}

// WardenMain is the process: os.Args[2] and [3] are the state directory and the migration's ID.
func WardenMain(log *slog.Logger) error {
	if len(os.Args) != 4 {
		return errors.New("the warden is started by the source's process, not by hand")
	}
	id, err := wire.ParseID(os.Args[3])
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	unix.CloseOnExec(3)
	w := &warden{log: log.With("part", "warden", "id", id), dir: os.Args[2], id: id, kept: map[string]*kept{}}
	if w.sock, err = fdpass.New(os.NewFile(3, "source")); err != nil {
		return err
	}
	raiseFiles()
	if err := confine.Refuse(confine.Machine()...); err != nil { // it starts programs, which need none of that either
		w.log.Warn("stand by without a filter of system calls", "err", err)
	}
	defer w.close()
	for first, pause := true, nextPause; ; first = false {
		born := time.Now()
		if w.serve() || !w.used {
			return nil
		}
		k, err := find(w.dir, w.id, SideSource)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // absent: it died before it had begun
			return err
		}
		switch st := k.Last().State; { // nobody else writes: the source's process is dead
		case first && !st.Handed():
			return w.giveUp()
		case st.Final():
			return nil
		}
		if time.Since(born) > nextMost {
			pause = nextPause
		}
		if !first { // perhaps it can't live
			time.Sleep(pause) //nolint:forbidigo // a pause is what is meant
			pause = min(2*pause, nextMost)
		}
		w.log.Warn("the source's process was killed; starting another", "audit", true)
		if err := w.next(); err != nil {
			w.log.Error("start another source's process", "err", err)
		}
	}
}

const (
	nextPause = 100 * time.Millisecond // before a source's process that follows another
	nextMost  = 5 * time.Second
)

func raiseFiles() {
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) // as many as allowed; more is better, less works
}

// serve takes what the source's process says until its end; true: nothing is left to be done.
func (w *warden) serve() bool {
	buf := make([]byte, fdpass.MaxMessage)
	end := relayEnd{w.sock, w.relay}
	for {
		n, files, err := w.sock.Recv(buf)
		if err != nil {
			break
		}
		if len(files) == 0 && buf[0] == wardenOver {
			return true
		}
		if len(files) == 0 && buf[0] == wardenUse {
			w.used = true
			if err := w.startSpare(); err != nil {
				w.log.Error("start spare warden", "err", err)
			}
			continue
		}
		if err := w.handle(&end, buf[:n], files); err != nil {
			w.log.Error("message of the source's process", "kind", buf[0], "err", err)
		}
	}
	w.sock.Close()
	if w.relay != nil {
		w.relay.attach(nil)
	}
	return false
}

func (w *warden) handle(end *relayEnd, b []byte, files []*os.File) error {
	switch {
	case b[0] < wardenKeep:
		fd := -1
		if len(files) == 1 {
			var err error
			fd, err = unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 3)
			fdpass.CloseAll(files)
			if err != nil {
				return fmt.Errorf("keep descriptor: %w", err)
			}
		}
		return w.files.Apply(b, fd)
	case b[0] == wardenKeep:
		var m keptMsg
		if err := json.Unmarshal(b[1:], &m); err != nil {
			fdpass.CloseAll(files)
			return err
		}
		k := w.kept[m.Name]
		if k == nil {
			k = &kept{}
			w.kept[m.Name] = k
		}
		k.files = append(k.files, files...)
		if m.Data != nil {
			k.data = append(k.data, m.Data)
		}
		return nil
	case b[0] == wardenStreams && w.relay == nil:
		var specs []streamSpec
		err := json.Unmarshal(b[1:], &specs)
		if err == nil {
			w.relay, err = newRelayOf(specs, files)
		}
		fdpass.CloseAll(files)
		if err != nil {
			return err
		}
		w.relay.start()
		end.relay = w.relay
		return nil
	case end.relay != nil:
		return end.handle(b)
	}
	fdpass.CloseAll(files)
	return errLink
}

// newRelayOf makes a relay of descriptors, of which it takes copies.
func newRelayOf(specs []streamSpec, files []*os.File) (*relay, error) {
	r := newRelay()
	if len(specs) != len(files) {
		return nil, errLink
	}
	for i, s := range specs {
		fd, err := unix.FcntlInt(files[i].Fd(), unix.F_DUPFD_CLOEXEC, 3)
		var e *streamEnd
		if err == nil {
			e, err = newStreamEnd(fd, s.Socket, s.Sole)
		}
		if err != nil {
			r.close()
			return nil, fmt.Errorf("take stream %d: %w", s.Stream, err)
		}
		if s.Out {
			r.addOut(s.Stream, e)
		} else {
			r.addIn(s.Stream, e)
		}
	}
	return r, nil
}

// startSpare starts a warden that is to take this one's place.
func (w *warden) startSpare() error {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer sock.Close()
	defer peer.Close()
	cmd := exec.Command("/proc/self/exe", WardenArg, w.dir, w.id.String()) // what this one is, whatever has become of the file
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{peer}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it ends with its socket
	return w.sock.SendFDs([]byte{wardenSpare}, sock.FD())
}

// giveUp is for a source's process that died before the grant: the tree runs here again, by the keeper.
func (w *warden) giveUp() error {
	w.close() // whoever follows the migration sees its end
	k, err := find(w.dir, w.id, SideSource)
	if err != nil {
		return err
	}
	cause := errors.New("the source's process was killed before the grant: the tree goes on here")
	if !k.Last().State.Final() {
		r, err := openRecord(k)
		if err != nil {
			return err
		}
		defer r.Close()
		if err := errors.Join(r.lock(), r.Enter(Aborted, cause.Error())); err != nil {
			return err
		}
		w.log.Warn("migration given up", "audit", true, "why", cause)
	}
	if err := releaseUnit(k.Dir); err != nil {
		w.log.Error("give the unit back to systemd", "err", err)
	}
	g, err := readGoing(w.dir, w.id)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the target has nothing that it would hold: without its connection it gives up
	}
	if err != nil {
		return err
	}
	d, err := g.dialer()
	if err != nil {
		return err
	}
	tellAborted(d, cause, w.log)
	return nil
}

// next starts another source's process, and hands everything over.
func (w *warden) next() error {
	g, err := readGoing(w.dir, w.id)
	if err != nil {
		return err
	}
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return err
	}
	defer peer.Close()
	w.sock = sock
	cmd := exec.Command(g.Options.Exe, SourceArg, resumeArg, w.dir, w.id.String())
	cmd.ExtraFiles = []*os.File{peer}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // its socket tells
	return w.hand()
}

// hand tells the source's process all that there is.
func (w *warden) hand() error {
	for name, k := range w.kept {
		for _, d := range k.data {
			if err := w.sendKept(name, d, nil); err != nil {
				return err
			}
		}
		for f := k.files; len(f) > 0; {
			n := min(len(f), fdpass.MaxFiles)
			if err := w.sendKept(name, nil, f[:n]); err != nil {
				return err
			}
			f = f[n:]
		}
	}
	if w.files.Whole() {
		if err := w.files.Hand(journalTo{w.sock}); err != nil {
			return err
		}
	}
	return w.sock.Send(append([]byte{wardenHanded}, encode(handedMsg{Streams: w.relay != nil})...))
}

func (w *warden) sendKept(name string, data json.RawMessage, files []*os.File) error {
	return w.sock.Send(append([]byte{wardenKeep}, encode(keptMsg{name, data})...), files...)
}

func (w *warden) close() {
	w.sock.Close()
	w.files.Close()
	for _, k := range w.kept {
		fdpass.CloseAll(k.files)
	}
	clear(w.kept)
	w.relay.close()
}

// journalTo is a socket as a journal of remotefs.
type journalTo struct{ *fdpass.Socket }

// Send implements remotefs.Journal.
func (j journalTo) Send(b []byte, fds ...int) error { return j.SendFDs(b, fds...) }
