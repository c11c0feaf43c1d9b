package detach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
)

// Apart is a switch in a process of its own (process.go), started before the tree is stopped, so that nobody else's death hurts the tree: see the
// table in the package's doc. All but Log are needed.
type Apart struct {
	Start   func(parts.Spec) (*parts.Process, error)
	Group   *os.File // cgroup.procs of the tree
	MountNS int      // as in Options, and so Dev
	Dev     uint64
	Remote  []string
	Streams []Stream
	// Settle is as in Options; it runs in this process. The Note stands in the outcome.
	Settle func(ctx context.Context, inodes []uint64) (Settled, error)
	// Outcome is the path of a file that is there once the tree is on its local files, before it runs: also when nobody hears of that. See ReadOutcome.
	Outcome string
	Hold    []*os.File // stay open until all is over: what is locked by them is so
	Cgroup  *os.File   // of the process
	Log     *slog.Logger
}

// Settled is what Settle says.
type Settled struct {
	Local
	Note []byte
}

// Outcome of a switch that is done.
type Outcome struct {
	Report Report `json:"report"`
	Note   []byte `json:"note"`
}

// Ops of the messages between Apart and its process; what they say is packed into a memfd.
const (
	opConfig  = "config"  // to the process: config, Group, Streams, Hold
	opSettle  = "settle"  // from it: inodes
	opSettled = "settled" // to it: settled
	opStop    = "stop"    // to it: give up, if it is not too late
	opDone    = "done"    // from it: done
)

type config struct {
	MountNS int
	Dev     uint64
	Remote  []string
	Streams []string // links; their files follow Group
	Outcome string
}

type settled struct {
	Settled
	Failed failure
}

type done struct {
	Outcome Outcome
	Failed  failure
}

// failure carries an error to another process; zero: none.
type failure struct {
	Text   string
	Stuck  []string
	Broken bool
}

func failureOf(err error) (f failure) {
	if err == nil {
		return f
	}
	f.Text = err.Error()
	if s, ok := errors.AsType[*Stuck](err); ok {
		f.Stuck = s.Reasons
	}
	_, f.Broken = errors.AsType[*Broken](err)
	return f
}

func (f failure) err() error {
	switch {
	case f.Broken:
		return &Broken{errors.New(f.Text)}
	case len(f.Stuck) > 0:
		return &Stuck{f.Stuck}
	case f.Text != "":
		return errors.New(f.Text)
	}
	return nil
}

// send sends a message, packed if there is anything in it.
func send(s *fdpass.Socket, op string, body any, files ...*os.File) error {
	if body != nil {
		f, err := fdpass.Pack(body)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append([]*os.File{f}, files...)
	}
	return s.Send([]byte(op), files...)
}

// ErrDied says that the process of a switch was killed: what became of the tree is in the package's doc.
var ErrDied = errors.New("the process that puts the tree on its files has died")

// Switch is Switch, apart. When ctx ends it gives up if it still can.
func (a Apart) Switch(ctx context.Context) (Outcome, error) {
	if a.Log == nil {
		a.Log = slog.New(slog.DiscardHandler)
	}
	sock, peer, err := fdpass.Pair()
	if err != nil {
		return Outcome{}, err
	}
	defer sock.Close()
	proc, err := a.Start(parts.Spec{Name: Arg, Files: []*os.File{peer}, Cgroup: a.Cgroup})
	peer.Close()
	if err != nil {
		return Outcome{}, err
	}
	ended := make(chan struct{})
	go func() { // not waited for: a thread of it may wait in the kernel for the old file system (writeBack)
		_ = proc.Wait() // how it ended is told by its last word
		close(ended)
	}()
	cfg := config{MountNS: a.MountNS, Dev: a.Dev, Remote: a.Remote, Outcome: a.Outcome}
	files := []*os.File{a.Group}
	for _, s := range a.Streams {
		cfg.Streams = append(cfg.Streams, s.Link)
		files = append(files, s.File)
	}
	if err := send(sock, opConfig, cfg, append(files, a.Hold...)...); err != nil {
		_ = proc.Kill() // it knows nothing
		<-ended
		return Outcome{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = send(sock, opStop, nil) }) // if it has ended it is too late
	defer stop()
	for {
		out, over, err := a.next(ctx, sock)
		if over {
			return out, err
		}
		if err != nil {
			_ = proc.Kill() // it is no more, or makes no sense
			<-ended
			if out, rerr := ReadOutcome(a.Outcome); rerr == nil {
				return *out, nil
			}
			return Outcome{}, fmt.Errorf("%w: %w", ErrDied, err)
		}
	}
}

// next handles one message of the process.
func (a Apart) next(ctx context.Context, sock *fdpass.Socket) (out Outcome, over bool, err error) {
	buf := make([]byte, 64)
	n, files, err := sock.Recv(buf)
	if err != nil {
		return out, false, err
	}
	defer fdpass.CloseAll(files)
	if len(files) != 1 {
		return out, false, fmt.Errorf("message %q with %d files", buf[:n], len(files))
	}
	switch string(buf[:n]) {
	case opSettle:
		var inodes []uint64
		if err := fdpass.Unpack(files[0], &inodes); err != nil {
			return out, false, err
		}
		s, err := a.Settle(ctx, inodes)
		return out, false, send(sock, opSettled, settled{s, failureOf(err)})
	case opDone:
		var d done
		if err := fdpass.Unpack(files[0], &d); err != nil {
			return out, false, err
		}
		return d.Outcome, true, d.Failed.err()
	}
	return out, false, fmt.Errorf("message %q", buf[:n])
}

// ReadOutcome reads the outcome of a switch that is done; fs.ErrNotExist: there is none.
func ReadOutcome(path string) (*Outcome, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var o Outcome
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("read outcome of a switch: %w", err)
	}
	return &o, nil
}

// outcomeSize is what is kept free for an outcome before the tree is stopped: a full disk must not be what makes it unknown.
const outcomeSize = 4096

// outcomeFile is an outcome that is not there yet.
type outcomeFile struct {
	f    *os.File
	path string
}

func newOutcome(path string) (*outcomeFile, error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make outcome of the switch: %w", err)
	}
	o := &outcomeFile{f, path}
	if err := o.put(Outcome{}); err != nil {
		o.drop()
		return nil, err
	}
	return o, nil
}

func (o *outcomeFile) put(v Outcome) error {
	b, err := json.Marshal(v)
	if err == nil && len(b) < outcomeSize {
		pad := make([]byte, outcomeSize-len(b))
		for i := range pad {
			pad[i] = '\n'
		}
		b = append(b, pad...)
	}
	if err == nil {
		_, err = o.f.WriteAt(b, 0)
	}
	if err != nil {
		return fmt.Errorf("write outcome of the switch: %w", err)
	}
	return nil
}

// publish makes it the outcome. It is for processes of this boot, so it is not fsynced: after another the tree is no more.
func (o *outcomeFile) publish(v Outcome) error {
	if err := o.put(v); err != nil {
		return err
	}
	return os.Rename(o.path+".new", o.path)
}

// drop is after all: what was published stays.
func (o *outcomeFile) drop() {
	o.f.Close()
	if err := os.Remove(o.path + ".new"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Default().Debug("remove outcome of a switch", "err", err)
	}
}
