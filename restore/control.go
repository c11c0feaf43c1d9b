package restore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/wire"
)

// What agent and guardian, and agent and handler, say to each other: one JSON message a datagram, with descriptors.
const (
	opStart    = "start"    // agent → guardian: startConfig; descriptors: the tree's cgroup, a bound socket for the next agent, /dev/fuse if there is one
	opRestore  = "restore"  // agent → guardian; descriptors: memfd with restoreConfig, then inherited files
	opFinish   = "finish"   // agent → guardian: all that criu does before the first instruction
	opOutlive  = "outlive"  // agent → guardian: the question is on disk; from now on the agent may go away
	opAgain    = "again"    // next agent → guardian; the answer carries againAnswer, and a pidfd of the root task if it has been let go
	opRelease  = "release"  // agent → guardian; the answer carries resumedAnswer and a pidfd of the root task
	opDrain    = "drain"    // agent → guardian: drainConfig
	opAhead    = "ahead"    // agent → guardian; descriptors: memfd with pages, memfd that says which these are
	opHot      = "hot"      // agent → guardian; descriptor: memfd that says which pages are asked for first
	opAttach   = "attach"   // agent → guardian; descriptor: a handler's socket
	opKeep     = "keep"     // agent → guardian: keptName; descriptor
	opDrop     = "drop"     // agent → guardian: keptName
	opKept     = "kept"     // agent → guardian: keptName; the answer carries keptAnswer, and descriptors of what is kept from that number on
	opLeave    = "leave"    // agent → guardian: all is here; after the answer PID 1 is another program
	opAnswer   = "answer"   // guardian → agent
	opEvent    = "event"    // guardian → agent
	opConfig   = "config"   // agent → handler: handlerConfig
	opLane     = "lane"     // agent → handler; descriptor: a connection
	opLaneLost = "lanelost" // handler → agent
	opLaneMore = "lanemore" // handler → agent: another bulk lane would help
)

// firstSeq is the number of an agent's first call, opStart.
const firstSeq = 1

type message struct {
	Op    string          `json:"op"`
	Seq   uint64          `json:"seq,omitempty"` // of a call; its answer has the same
	Err   *errorText      `json:"err,omitempty"`
	Lane  wire.Lane       `json:"lane,omitempty"`
	Clear bool            `json:"clear,omitempty"` // of opLane: no TLS
	Body  json.RawMessage `json:"body,omitempty"`

	from *fdpass.Socket // where it was received: the agent of a call may have died, and the next one counts its calls anew
}

// errorText carries an error to another process of this host.
type errorText struct {
	Text      string
	Errno     unix.Errno
	NeverRuns bool `json:",omitempty"` // it is ErrNeverRuns
}

func (e *errorText) Error() string { return e.Text }

// Is finds ErrNeverRuns.
func (e *errorText) Is(target error) bool { return e.NeverRuns && target == ErrNeverRuns }

// Unwrap gives the errno to errors.Is.
func (e *errorText) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

const maxErrorText = 16 << 10

func textOf(err error) *errorText {
	if err == nil {
		return nil
	}
	e := &errorText{Text: err.Error(), Errno: wire.ErrnoOf(err), NeverRuns: errors.Is(err, ErrNeverRuns)}
	if len(e.Text) > maxErrorText {
		e.Text = e.Text[:maxErrorText]
	}
	return e
}

func sendMessage(s *fdpass.Socket, m message, body any, files ...*os.File) error {
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode %s: %w", m.Op, err)
		}
		m.Body = b
	}
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", m.Op, err)
	}
	return s.Send(b, files...)
}

// receiver reads messages with one buffer.
type receiver struct {
	s   *fdpass.Socket
	buf []byte
}

func newReceiver(s *fdpass.Socket) *receiver {
	return &receiver{s: s, buf: make([]byte, fdpass.MaxMessage)}
}

func (r *receiver) next() (message, []*os.File, error) {
	n, files, err := r.s.Recv(r.buf)
	if err != nil {
		return message{}, nil, err
	}
	var m message
	if err := json.Unmarshal(r.buf[:n], &m); err != nil {
		fdpass.CloseAll(files)
		return message{}, nil, fmt.Errorf("decode message of peer process: %w", err)
	}
	return m, files, nil
}

var errMessage = errors.New("unexpected message between lazymig's processes")
