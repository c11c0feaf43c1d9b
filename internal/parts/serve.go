package parts

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// Op does one thing that it is asked for. in decodes what is said to that, files are closed when it returns; out, nil or to be packed, and back are the answer.
type Op func(in func(any) error, files []*os.File) (out any, back *os.File, err error)

// maxCalls is how many are carried out at a time.
const maxCalls = 64

// Server carries out what a Client asks for.
type Server struct {
	// Dir is the directory below which directories of parts must lie.
	Dir string
	// Ops are what may be asked for beside parts.
	Ops map[string]Op
	// Failed is told of what is refused or fails.
	Failed func(op string, err error)
}

// Serve carries out what is asked for until the client's end is closed. What it has started lives on.
func (s *Server) Serve(sock *fdpass.Socket) error {
	turn := make(chan struct{}, maxCalls)
	var wg sync.WaitGroup
	defer wg.Wait()
	buf := make([]byte, fdpass.MaxMessage)
	for {
		n, files, err := sock.Recv(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return err
		}
		var q request
		if err := json.Unmarshal(buf[:n], &q); err != nil {
			fdpass.CloseAll(files)
			return fmt.Errorf("decode request: %w", err)
		}
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			s.one(sock, q, files)
		})
	}
}

func (s *Server) one(sock *fdpass.Socket, q request, files []*os.File) {
	all := files
	defer func() { fdpass.CloseAll(all) }()
	in := func(any) error { return fmt.Errorf("%s says nothing: %w", q.Op, unix.EPROTO) }
	if q.Body && len(files) > 0 {
		body := files[0]
		in = func(v any) error { return fdpass.Unpack(body, v) }
		files = files[1:]
	}
	var out any
	var back *os.File
	var p *Process
	err := fmt.Errorf("%q is not to be had: %w", q.Op, unix.EPERM)
	if q.Op == opStart {
		if p, err = s.start(in, files); err == nil {
			out, back = startedBody{p.PID}, p.pidfd
		}
	} else if op := s.Ops[q.Op]; op != nil {
		out, back, err = op(in, files)
		if back != nil {
			defer back.Close()
		}
	}
	if err != nil {
		s.Failed(q.Op, err)
	}
	s.answer(sock, reply{Seq: q.Seq}, err, out, back)
	if p != nil {
		go func() { // ends with the part, or this process
			err := p.Wait()
			s.answer(sock, reply{Seq: q.Seq, Ended: true}, err, nil, nil)
		}()
	}
}

func (s *Server) answer(sock *fdpass.Socket, r reply, err error, out any, back *os.File) {
	var files []*os.File
	if err == nil && out != nil {
		var f *os.File
		if f, err = fdpass.Pack(out); err == nil {
			defer f.Close()
			r.Body, files = true, append(files, f)
		}
	}
	if err != nil {
		r.Err = err.Error()
		if errno, ok := errors.AsType[unix.Errno](err); ok {
			r.Errno = int(errno)
		}
	} else if back != nil {
		files = append(files, back)
	}
	b, merr := json.Marshal(r)
	if merr == nil {
		merr = sock.Send(b, files...)
	}
	if merr != nil && !errors.Is(merr, os.ErrClosed) && !errors.Is(merr, unix.EPIPE) {
		s.Failed("answer", merr)
	}
}

// start starts a part. What may be asked for is checked here, whatever the client has checked.
func (s *Server) start(in func(any) error, files []*os.File) (*Process, error) {
	var b startBody
	if err := in(&b); err != nil {
		return nil, err
	}
	spec := Spec{Name: b.Name, Dir: b.Dir, Files: files}
	if b.Cgroup && len(files) > 0 {
		spec.Cgroup, spec.Files = files[len(files)-1], files[:len(files)-1]
	}
	if err := s.Below(b.Dir); b.Dir != "" && err != nil {
		return nil, err
	}
	return Here{}.Start(spec)
}

// Below checks that a directory is one of those right below Dir, and no link.
func (s *Server) Below(dir string) error {
	if filepath.Clean(dir) != dir || filepath.Dir(dir) != s.Dir {
		return fmt.Errorf("%s is not in %s: %w", dir, s.Dir, unix.EPERM)
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is no directory: %w", dir, unix.ENOTDIR)
	}
	return nil
}
