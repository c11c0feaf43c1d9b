package parts

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// What client and server say, a datagram each. Bodies are packed into a memfd, the first of the files, if there is one.
type request struct {
	Seq  uint64 `json:"seq"`
	Op   string `json:"op"`
	Body bool   `json:"body,omitempty"`
}

type reply struct {
	Seq   uint64 `json:"seq"`
	Err   string `json:"err,omitempty"`
	Errno int    `json:"errno,omitempty"` // the first in Err
	Body  bool   `json:"body,omitempty"`
	Ended bool   `json:"ended,omitempty"` // the part that Seq has started is no more; Err: how
}

const opStart = "start"

type startBody struct {
	Name, Dir string
	Cgroup    bool // the last of the files
}

type startedBody struct{ PID int }

// ErrLost says that the process that starts parts for this one is no more.
var ErrLost = errors.New("the process that does what this one may not is no more")

// Client asks another process, which runs Serve.
type Client struct {
	sock *fdpass.Socket
	done chan struct{}

	mu    sync.Mutex
	seq   uint64
	calls map[uint64]chan answer
	ends  map[uint64]chan error // of parts
	lost  bool
}

type answer struct {
	r     reply
	files []*os.File
	err   error
}

// NewClient takes over the socket. lost is called once when the other process has ended, unless Close was called before.
func NewClient(sock *fdpass.Socket, lost func()) *Client {
	c := &Client{sock: sock, done: make(chan struct{}), calls: map[uint64]chan answer{}, ends: map[uint64]chan error{}}
	go func() {
		defer close(c.done)
		c.read()
		if c.unwanted() { // before anybody takes it for the end of what was started
			lost()
		}
		c.end()
	}()
	return c
}

// read listens until the end.
func (c *Client) read() {
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := c.sock.Recv(buf)
		var r reply
		if err == nil {
			err = json.Unmarshal(buf[:n], &r)
		}
		if err != nil {
			fdpass.CloseAll(files)
			return
		}
		c.mu.Lock()
		call, part := c.calls[r.Seq], c.ends[r.Seq]
		if r.Ended {
			delete(c.ends, r.Seq)
		} else {
			delete(c.calls, r.Seq)
		}
		c.mu.Unlock()
		switch {
		case r.Ended && part != nil:
			fdpass.CloseAll(files)
			part <- r.err()
		case !r.Ended && call != nil:
			call <- answer{r: r, files: files}
		default:
			fdpass.CloseAll(files)
		}
	}
}

// unwanted says whether the end was nobody's wish here.
func (c *Client) unwanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.lost
}

func (c *Client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = true
	for _, ch := range c.calls {
		ch <- answer{err: ErrLost}
	}
	for _, ch := range c.ends {
		ch <- ErrLost
	}
	c.calls, c.ends = nil, nil
}

// Close ends the other process, which ends nothing that it has started.
func (c *Client) Close() {
	c.mu.Lock()
	c.lost = true
	c.mu.Unlock()
	c.sock.Close()
	<-c.done
}

// Call asks for op; in and out are nil or are packed.
func (c *Client) Call(op string, in, out any, files ...*os.File) error {
	got, err := c.call(op, in, out, nil, files...)
	fdpass.CloseAll(got)
	return err
}

// CallFile is Call for an op that answers with a descriptor, which is the caller's.
func (c *Client) CallFile(op string, in any, files ...*os.File) (*os.File, error) {
	got, err := c.call(op, in, nil, nil, files...)
	if err == nil && len(got) != 1 {
		err = fmt.Errorf("%s: %d files: %w", op, len(got), unix.EPROTO)
	}
	if err != nil {
		fdpass.CloseAll(got)
		return nil, err
	}
	return got[0], nil
}

// call asks. end, if there is one, is told of the end of the part that is asked for.
func (c *Client) call(op string, in, out any, end chan error, files ...*os.File) ([]*os.File, error) {
	q := request{Op: op, Body: in != nil}
	if in != nil {
		f, err := fdpass.Pack(in)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		files = append([]*os.File{f}, files...)
	}
	ch := make(chan answer, 1)
	c.mu.Lock()
	if c.lost {
		c.mu.Unlock()
		return nil, ErrLost
	}
	c.seq++
	q.Seq = c.seq
	c.calls[q.Seq] = ch
	if end != nil {
		c.ends[q.Seq] = end
	}
	c.mu.Unlock()
	b, err := json.Marshal(q)
	if err == nil {
		err = c.sock.Send(b, files...)
	}
	var a answer
	if err == nil {
		a = <-ch
		err = a.err
	}
	if err == nil {
		err = a.r.err()
	}
	if err == nil && out != nil {
		if !a.r.Body || len(a.files) == 0 {
			err = fmt.Errorf("%s: no answer in the answer: %w", op, unix.EPROTO)
		} else {
			err = fdpass.Unpack(a.files[0], out)
			a.files[0].Close()
			a.files = a.files[1:]
		}
	}
	if err != nil {
		fdpass.CloseAll(a.files)
		c.mu.Lock()
		delete(c.calls, q.Seq)
		delete(c.ends, q.Seq)
		c.mu.Unlock()
		return nil, err
	}
	return a.files, nil
}

// Start has a part started.
func (c *Client) Start(s Spec) (*Process, error) {
	if _, err := s.kind(); err != nil { // for who forgets something; the other side asks again
		return nil, err
	}
	b := startBody{Name: s.Name, Dir: s.Dir, Cgroup: s.Cgroup != nil}
	files := s.Files
	if b.Cgroup {
		files = append(slices.Clip(files), s.Cgroup)
	}
	var m startedBody
	end := make(chan error, 1)
	got, err := c.call(opStart, b, &m, end, files...)
	if err == nil && len(got) != 1 {
		fdpass.CloseAll(got)
		err = fmt.Errorf("start %s: %d descriptors: %w", s.Name, len(got), unix.EPROTO)
	}
	if err != nil {
		return nil, err
	}
	return newProcess(m.PID, got[0], func() error { return <-end }), nil
}

func (r *reply) err() error {
	if r.Err == "" {
		return nil
	}
	if r.Errno != 0 {
		return &remoteError{r.Err, unix.Errno(r.Errno)}
	}
	return errors.New(r.Err)
}

// remoteError keeps the errno of an error of the other process.
type remoteError struct {
	text  string
	errno unix.Errno
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.errno }
