package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/wire"
)

// After the grant the source's process can't start programs any more, but its warden can: so a warden in use starts a spare one, which has nothing yet, and
// gives the source's process its socket. When the warden is killed the spare one is told all anew, and starts the next. Only what standard
// streams had under way is lost.

// wardens are the one in use and the one that is to follow. A nil one has none.
type wardens struct {
	exe, stateDir string
	id            wire.ID
	log           *slog.Logger
	spared        chan struct{} // there is a spare one

	mu     sync.Mutex
	cur    *wardenLink
	spare  *wardenLink // nil: none yet, or none any more
	sealed bool        // this process can't start one
	kept   []keeping   // to be told anew
}

// keeping is what is kept under a name. The descriptors are somebody else's, who closes them when this is over.
type keeping struct {
	name  string
	data  json.RawMessage
	files []*os.File
}

// startWardens starts the first.
func startWardens(exe, stateDir string, id wire.ID, log *slog.Logger) (*wardens, error) {
	w := &wardens{exe: exe, stateDir: stateDir, id: id, log: log, spared: make(chan struct{}, 1)}
	l, err := w.start()
	if err != nil {
		return nil, err
	}
	w.use(l)
	return w, nil
}

// start starts one, in a session of its own.
func (w *wardens) start() (*wardenLink, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start warden: %w", err)
	}
	defer peer.Close()
	cmd := exec.Command(w.exe, WardenArg, w.stateDir, w.id.String())
	cmd.ExtraFiles = []*os.File{peer}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		sock.Close()
		return nil, fmt.Errorf("start warden: %w", err)
	}
	l := newWardenLink(sock)
	l.cmd = cmd
	l.listen(w.log, w.gotSpare)
	return l, nil
}

// use makes l the one in use, which starts a spare one. Called with mu, or before anybody else knows w.
func (w *wardens) use(l *wardenLink) {
	w.cur = l
	_ = l.sock.Send([]byte{wardenUse}) // if it is gone its reader tells
}

// gotSpare takes a spare one, from the reader of the one in use.
func (w *wardens) gotSpare(f *os.File) {
	sock, err := fdpass.New(f)
	if err != nil {
		w.log.Error("take spare warden", "err", err)
		return
	}
	l := newWardenLink(sock)
	l.listen(w.log, w.gotSpare)
	w.mu.Lock()
	old := w.spare
	w.spare = l
	w.mu.Unlock()
	if old != nil {
		old.close() // it was asked for once more
	}
	select {
	case w.spared <- struct{}{}:
	default:
	}
}

// link is the one in use.
func (w *wardens) link() *wardenLink {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cur
}

// losses are closed when the one in use, or the spare one, is gone.
func (w *wardens) losses() (cur, spare <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spare != nil {
		spare = w.spare.lost
	}
	return w.cur.lost, spare
}

// another asks for a spare one in place of one that is gone, after a pause: perhaps it can't live.
func (w *wardens) another(stop <-chan struct{}) {
	w.mu.Lock()
	if w.spare != nil {
		w.spare.close()
		w.spare = nil
	}
	w.mu.Unlock()
	select {
	case <-time.After(nextPause):
	case <-stop:
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.use(w.cur)
}

var errNoWarden = errors.New("the warden is gone, and there is no other: should this process be killed, it takes `lazymig recover`")

// replace puts the spare one in the place of one that is gone, and tells it what was kept. The caller tells it of files.
func (w *wardens) replace() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cur.close()
	l := w.spare
	w.spare = nil
	if l == nil {
		if w.sealed {
			return errNoWarden
		}
		var err error
		if l, err = w.start(); err != nil {
			return errors.Join(errNoWarden, err)
		}
	}
	w.use(l)
	for _, k := range w.kept {
		if err := l.keep(k.name, k.data, k.files...); err != nil {
			return err // it is gone, too: as it was before
		}
	}
	w.log.Warn("the warden was killed; another takes its place", "audit", true)
	return nil
}

// seal is before this process gives up starting programs.
func (w *wardens) seal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sealed = true
}

// keep lets the warden hold descriptors under a name. They stay the caller's, open until over.
func (w *wardens) keep(name string, data any, files ...*os.File) error {
	k := keeping{name: name, files: files}
	if data != nil {
		k.data = encode(data)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, k)
	return w.cur.keep(k.name, k.data, k.files...)
}

// leave ends both links without a word: the one in use starts another source's process.
func (w *wardens) leave() { w.end((*wardenLink).close) }

// over is the end of the migration: the wardens go. May be called more than once.
func (w *wardens) over() {
	if w != nil {
		w.end((*wardenLink).over)
	}
}

// end ends the one in use; after it no spare one can come any more.
func (w *wardens) end(how func(*wardenLink)) {
	how(w.link())
	w.mu.Lock()
	spare := w.spare
	w.spare = nil
	w.mu.Unlock()
	if spare != nil {
		spare.close() // it has not been used, and goes
	}
}
