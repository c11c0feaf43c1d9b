package wire

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unicode"
)

// Error is a failure told by the peer: its words, and the errno if there was one.
type Error struct {
	Errno syscall.Errno // 0: none
	Text  string
}

func (e *Error) Error() string { return "peer: " + e.Text }

// Unwrap yields the errno, so that errors.Is(err, ENOSPC) works across the wire.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

const maxErrorText = 4096

// MarshalError encodes err for MsgError.
func MarshalError(err error) []byte {
	var e Encoder
	e.U32(uint32(ErrnoOf(err)))
	s := err.Error()
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	e.String(s)
	return e.B
}

// ParseError decodes the payload of MsgError; the result is never nil.
func ParseError(b []byte) error {
	d := NewDecoder(b)
	e := &Error{Errno: syscall.Errno(d.U32()), Text: d.String(maxErrorText)}
	if err := d.End(); err != nil {
		return fmt.Errorf("decode error of peer: %w", err)
	}
	e.Text = strings.Map(printable, e.Text) // it may go to a terminal
	if e.Errno > 4095 {
		e.Errno = syscall.EIO
	}
	return e
}

func printable(r rune) rune {
	if r == '\n' || unicode.IsPrint(r) {
		return r
	}
	return '?'
}

// ErrnoOf is the errno inside err, or 0.
func ErrnoOf(err error) syscall.Errno {
	if n, ok := errors.AsType[syscall.Errno](err); ok {
		return n
	}
	return 0
}
