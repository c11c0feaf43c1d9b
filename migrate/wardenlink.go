package migrate

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/remotefs"
	"github.com/lazymig/lazymig/wire"
)

// wardenLink is the source's end of its warden.
type wardenLink struct {
	sock   *fdpass.Socket
	cmd    *exec.Cmd // nil: the warden has started us
	relay  *relayLink
	reader sync.WaitGroup
	lost   chan struct{} // closed when the warden is gone
}

func newWardenLink(sock *fdpass.Socket) *wardenLink {
	return &wardenLink{sock: sock, relay: newRelayLink(sock), lost: make(chan struct{})}
}

// listen reads what the warden says from now on. spare takes the socket of a spare one.
func (l *wardenLink) listen(log *slog.Logger, spare func(*os.File)) {
	l.reader.Go(func() {
		defer close(l.lost)
		l.relay.listen(log.With("of", "warden"), func(b []byte, files []*os.File) bool {
			if b[0] != wardenSpare || len(files) != 1 {
				return false
			}
			spare(files[0])
			return true
		})
	})
}

// keep lets the warden hold descriptors under a name. They stay the caller's.
func (l *wardenLink) keep(name string, raw json.RawMessage, files ...*os.File) error {
	for {
		n := min(len(files), fdpass.MaxFiles)
		if err := l.sock.Send(append([]byte{wardenKeep}, encode(keptMsg{name, raw})...), files[:n]...); err != nil {
			return fmt.Errorf("let warden keep %s: %w", name, err)
		}
		if files, raw = files[n:], nil; len(files) == 0 {
			return nil
		}
	}
}

// streams lets the warden carry standard streams.
func (l *wardenLink) streams(specs []streamSpec, files []*os.File) error {
	if err := l.sock.Send(append([]byte{wardenStreams}, encode(specs)...), files...); err != nil {
		return fmt.Errorf("let warden carry standard streams: %w", err)
	}
	return nil
}

// over is the end of the migration: the warden goes. May be called more than once.
func (l *wardenLink) over() {
	_ = l.sock.Send([]byte{wardenOver}) // a warden that is gone needs no word
	l.close()
}

// close ends the link without a word.
func (l *wardenLink) close() {
	l.relay.leave()
	l.sock.Close()
	l.reader.Wait()
	if l.cmd != nil {
		_ = l.cmd.Wait()
		l.cmd = nil
	}
}

// handedOver is what a warden has given.
type handedOver struct {
	handedMsg
	link  *wardenLink // not listened to yet
	files remotefs.Standby
	kept  map[string]*kept

	recovers bool // nothing was: the warden was killed, too
}

// receive takes all that the warden at the other end of sock hands over.
func receive(sock *fdpass.Socket, log *slog.Logger) (*handedOver, error) {
	h := &handedOver{kept: map[string]*kept{}}
	w := warden{log: log, sock: sock, kept: h.kept} // it takes the same messages
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := sock.Recv(buf)
		if err != nil {
			h.files.Close()
			return nil, fmt.Errorf("take over from the warden: %w", err)
		}
		if buf[0] == wardenHanded {
			fdpass.CloseAll(files)
			err = json.Unmarshal(buf[1:n], &h.handedMsg)
		} else {
			err = w.handle(&relayEnd{}, buf[:n], files)
			h.files = w.files
		}
		if err != nil {
			return nil, fmt.Errorf("take over from the warden: %w", err)
		}
		if buf[0] == wardenHanded {
			h.link = newWardenLink(sock)
			return h, nil
		}
	}
}

// takeWarden takes the one that has handed all over. If there was none, one is started. What it has, another would be told.
func (h *handedOver) takeWarden(exe, stateDir string, id wire.ID, log *slog.Logger) (*wardens, error) {
	if h.link == nil {
		return startWardens(exe, stateDir, id, log)
	}
	w := &wardens{exe: exe, stateDir: stateDir, id: id, log: log, spared: make(chan struct{}, 1)}
	for name, k := range h.kept {
		w.kept = append(w.kept, keeping{name: name, files: k.files})
		for _, d := range k.data {
			w.kept = append(w.kept, keeping{name: name, data: d})
		}
	}
	h.link.listen(log, w.gotSpare)
	w.use(h.link)
	return w, nil
}

// view gives the socket to whoever follows the migration, or nil. A copy stays.
func (h *handedOver) view() *os.File {
	f := h.take(keptView)
	if f == nil {
		return nil
	}
	if c, err := dupFile(f); err == nil {
		h.kept[keptView].files = []*os.File{c}
	}
	return f
}

// take gives the one descriptor of a name, or nil.
func (h *handedOver) take(name string) *os.File {
	k := h.kept[name]
	if k == nil || len(k.files) == 0 {
		return nil
	}
	f := k.files[0]
	k.files = k.files[1:]
	return f
}

// dupFile is a copy of a descriptor.
func dupFile(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
