package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// maxMessage bounds one answer of criu; its own limit is the socket's buffer.
const maxMessage = 256 << 10

// Notify is called for each step that criu announces: pre-dump, query-ext-files, network-lock, post-dump at a dump;
// pre-restore, setup-namespaces, post-setup-namespaces, post-restore, network-unlock, pre-resume, post-resume at a
// restore. pid is 0 where criu names none. criu waits until it returns; an error makes criu roll back.
type Notify func(script string, pid int32) error

// Error is a request that criu says has failed.
type Error struct {
	Request string
	Errno   unix.Errno // 0 when criu names none
	Message string     // criu's own
	Log     string     // its last lines
}

func (e *Error) Error() string {
	s := "criu: " + e.Request + " failed"
	if e.Errno != 0 {
		s += ": " + e.Errno.Error()
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s + e.Log
}

// Unwrap gives the errno to errors.Is.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// Dump runs one dump. When it returns an error criu has ended or is killed. A notification that was refused is in the
// error's chain. ctx ends it: criu rolls back.
func (w *Worker) Dump(ctx context.Context, opts *rpc.CriuOpts, n Notify) error {
	_, err := w.request(ctx, rpc.CriuReqType_DUMP, opts, n)
	return err
}

// Restore runs one restore and returns the root task's pid as criu sees it.
func (w *Worker) Restore(ctx context.Context, opts *rpc.CriuOpts, n Notify) (int32, error) {
	resp, err := w.request(ctx, rpc.CriuReqType_RESTORE, opts, n)
	if err != nil {
		return 0, err
	}
	if resp.GetRestore() == nil {
		return 0, &Error{Request: "RESTORE", Message: "answer without a pid"}
	}
	return resp.GetRestore().GetPid(), nil
}

func (w *Worker) request(ctx context.Context, t rpc.CriuReqType, opts *rpc.CriuOpts, n Notify) (*rpc.CriuResp, error) {
	w.mu.Lock()
	if w.used {
		w.mu.Unlock()
		return nil, errors.New("criu: a worker serves one request")
	}
	w.used = true
	w.mu.Unlock()

	if opts.LogFile == nil && opts.LogToStderr == nil {
		opts.LogToStderr = new(true)
	}
	if n != nil {
		opts.NotifyScripts = new(true)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.sock.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	resp, err := w.converse(ctx, t, opts, n)
	if err != nil {
		if cerr := w.Close(); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}
	return resp, err
}

func (w *Worker) converse(ctx context.Context, t rpc.CriuReqType, opts *rpc.CriuOpts, n Notify) (*rpc.CriuResp, error) {
	req := &rpc.CriuReq{Type: &t, Opts: opts}
	var refused error
	buf := make([]byte, maxMessage)
	for {
		resp, err := w.exchange(req, buf)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, errors.Join(refused, fmt.Errorf("criu: %s: %w%s", t, err, w.lastLines()))
		}
		if !resp.GetSuccess() {
			return nil, errors.Join(refused, &Error{
				Request: t.String(), Errno: unix.Errno(max(resp.GetCrErrno(), 0)), Message: resp.GetCrErrmsg(), Log: w.lastLines(),
			})
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			if resp.GetType() != t {
				return nil, &Error{Request: t.String(), Message: "answered " + resp.GetType().String()}
			}
			return resp, refused
		}
		if n != nil && refused == nil {
			script := resp.GetNotify().GetScript()
			if err := n(script, resp.GetNotify().GetPid()); err != nil {
				refused = fmt.Errorf("%s: %w", script, err)
			} else if ctx.Err() != nil {
				refused = fmt.Errorf("%s: %w", script, ctx.Err())
			}
		}
		if refused != nil && ctx.Err() != nil {
			_ = w.sock.SetDeadline(time.Now().Add(killAfter)) // let criu say how it rolled back
		}
		nt := rpc.CriuReqType_NOTIFY
		req = &rpc.CriuReq{Type: &nt, NotifySuccess: new(refused == nil)}
	}
}

// exchange sends one message and receives the answer.
func (w *Worker) exchange(req *rpc.CriuReq, buf []byte) (*rpc.CriuResp, error) {
	b, err := req.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if _, err := w.sock.Write(b); err != nil {
		return nil, fmt.Errorf("send: %w", err)
	}
	m, err := w.sock.Read(buf)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("criu has ended: %w", unix.ECONNRESET)
		}
		return nil, fmt.Errorf("receive: %w", err)
	}
	resp := &rpc.CriuResp{}
	if err := resp.UnmarshalVT(buf[:m]); err != nil {
		return nil, fmt.Errorf("decode answer: %w", err)
	}
	return resp, nil
}
