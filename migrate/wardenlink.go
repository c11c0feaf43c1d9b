package migrate

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"

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

// startWarden starts one, in a session of its own.
func startWarden(exe, stateDir string, id wire.ID, log *slog.Logger) (*wardenLink, error) {
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return nil, fmt.Errorf("start warden: %w", err)
	}
	defer peer.Close()
	cmd := exec.Command(exe, WardenArg, stateDir, id.String())
	cmd.ExtraFiles = []*os.File{peer}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		sock.Close()
		return nil, fmt.Errorf("start warden: %w", err)
	}
	l := &wardenLink{sock: sock, cmd: cmd, lost: make(chan struct{})}
	l.listen(log)
	return l, nil
}

// listen reads what the warden says from now on.
func (l *wardenLink) listen(log *slog.Logger) {
	l.relay = newRelayLink(l.sock)
	l.reader.Go(func() {
		defer close(l.lost)
		l.relay.listen(log.With("of", "warden"), func([]byte, []*os.File) bool { return false })
	})
}

// keep lets the warden hold descriptors under a name. They stay the caller's.
func (l *wardenLink) keep(name string, data any, files ...*os.File) error {
	var raw json.RawMessage
	if data != nil {
		raw = encode(data)
	}
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

// over is the end of the migration: the warden goes. May be called more than once, also on nil.
func (l *wardenLink) over() {
	if l == nil {
		return
	}
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
	link  *wardenLink
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
			h.link = &wardenLink{sock: sock, lost: make(chan struct{})}
			h.link.listen(log)
			return h, nil
		}
	}
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
