package pagesrv

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// PageSize is the unit of everything here; MaxPages the most that one request may ask for; MaxParts how many ranges it may name on a bulk lane, if
// the source has said that it knows how: one that does not ends the connection.
const (
	PageSize = 4096
	MaxPages = 256
	MaxParts = 64
)

// maxAddr bounds user addresses (5-level page tables).
const maxAddr = 1 << 56

// Kind tells what a run of pages is at the source.
type Kind uint8

// The kinds. The numbers are on the wire.
const (
	KindData   Kind = 1 // bytes follow
	KindZero   Kind = 2 // absent, or all zero
	KindGuard  Kind = 3 // MADV_GUARD_INSTALL: to be installed again
	KindPoison Kind = 4 // hardware poison (or UFFDIO_POISON)
	KindError  Kind = 5 // could not be read, Errno says why
)

func (k Kind) String() string {
	switch k {
	case KindData:
		return "data"
	case KindZero:
		return "zero"
	case KindGuard:
		return "guard"
	case KindPoison:
		return "poison"
	case KindError:
		return "error"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Run is a number of pages of one kind.
type Run struct {
	Kind  Kind
	Errno syscall.Errno // KindError only
	Pages uint32
}

// Request asks for pages of one task.
type Request struct {
	Task  uint32
	Addr  uint64
	Pages uint32
}

// Reply covers the request's pages in order. The data runs' bytes lie one after the other in the buffer given to Fetch.
type Reply struct {
	Runs  []Run // valid until done returns
	Bytes int   // of all data runs
}

var (
	// ErrSourceLost says that the task whose memory was asked for is no more, or dying: its pages are lost.
	ErrSourceLost = errors.New("source task lost")
	// ErrLaneLost says that the connection went away before the answer came: ask again on the next.
	ErrLaneLost = errors.New("lane lost")
	// ErrClosed says that the client or server has been closed.
	ErrClosed = errors.New("closed")
	// ErrProtocol says that the peer sent what it must not; its connection is given up.
	ErrProtocol = errors.New("protocol violation")
)

// Sizes of what is on the wire; see the pages block of wire/messages.go.
const (
	requestSize = 16 // of one range
	partSize    = 12 // of each further one
	runSize     = 7
)

func (r Request) check() error {
	switch {
	case r.Pages < 1 || r.Pages > MaxPages:
		return fmt.Errorf("request of %d pages: %w", r.Pages, syscall.EINVAL)
	case r.Addr%PageSize != 0:
		return fmt.Errorf("request at %#x, not a page's address: %w", r.Addr, syscall.EINVAL)
	case r.Addr >= maxAddr || r.Addr+uint64(r.Pages)*PageSize > maxAddr:
		return fmt.Errorf("request at %#x: %w", r.Addr, syscall.EINVAL)
	}
	return nil
}

func (r Request) appendTo(b []byte) []byte {
	e := wire.Encoder{B: b}
	e.U32(r.Task)
	e.U64(r.Addr)
	e.U32(r.Pages)
	return e.B
}

// fitsRequest says whether n bytes can be a request. Only a bulk one may name several ranges: what somebody waits for is one.
func fitsRequest(n uint32, bulk bool) bool {
	return n == requestSize || bulk && n > requestSize && n <= requestSize+(MaxParts-1)*partSize && (n-requestSize)%partSize == 0
}

// checkParts checks the ranges of a request: as each, and together.
func checkParts(parts []Request) (pages uint32, err error) {
	if len(parts) < 1 || len(parts) > MaxParts {
		return 0, fmt.Errorf("request of %d ranges: %w", len(parts), syscall.EINVAL)
	}
	for _, p := range parts {
		if err := p.check(); err != nil {
			return 0, err
		}
		if p.Task != parts[0].Task {
			return 0, fmt.Errorf("request of tasks %d and %d: %w", parts[0].Task, p.Task, syscall.EINVAL)
		}
		if pages += p.Pages; pages > MaxPages {
			return 0, fmt.Errorf("request of more than %d pages: %w", MaxPages, syscall.EINVAL)
		}
	}
	return pages, nil
}

// appendParts encodes one request for several ranges of one task.
func appendParts(b []byte, parts []Request) []byte {
	e := wire.Encoder{B: parts[0].appendTo(b)}
	for _, p := range parts[1:] {
		e.U64(p.Addr)
		e.U32(p.Pages)
	}
	return e.B
}

// parseParts decodes a request into its ranges.
func parseParts(b []byte, into []Request) ([]Request, error) {
	if !fitsRequest(uint32(min(len(b), 1<<20)), true) {
		return nil, fmt.Errorf("decode request of %d bytes: %w", len(b), ErrProtocol)
	}
	d := wire.NewDecoder(b)
	parts := append(into[:0], Request{Task: d.U32(), Addr: d.U64(), Pages: d.U32()})
	for d.Len() > 0 {
		parts = append(parts, Request{Task: parts[0].Task, Addr: d.U64(), Pages: d.U32()})
	}
	if err := d.End(); err != nil {
		return nil, fmt.Errorf("decode request: %w: %w", ErrProtocol, err)
	}
	return parts, nil
}

func appendRuns(b []byte, runs []Run) []byte {
	e := wire.Encoder{B: b}
	e.U32(uint32(len(runs)))
	for _, r := range runs {
		e.U8(uint8(r.Kind))
		e.U16(uint16(r.Errno))
		e.U32(r.Pages)
	}
	return e.B
}

// parseRuns decodes count runs, which must cover exactly the pages of a request, and tells how many bytes belong to them.
func parseRuns(b []byte, pages uint32, into []Run) ([]Run, int, error) {
	if len(b)%runSize != 0 {
		return nil, 0, fmt.Errorf("decode runs: %w: %w", ErrProtocol, wire.ErrShort)
	}
	d := wire.NewDecoder(b)
	runs, left, data := into[:0], pages, 0
	for d.Len() > 0 {
		r := Run{Kind: Kind(d.U8()), Errno: syscall.Errno(d.U16()), Pages: d.U32()}
		switch {
		case r.Kind < KindData || r.Kind > KindError:
			return nil, 0, fmt.Errorf("decode runs: %w: %v", ErrProtocol, r.Kind)
		case (r.Kind == KindError) != (r.Errno != 0) || r.Errno > 4095:
			return nil, 0, fmt.Errorf("decode runs: %w: %v with errno %d", ErrProtocol, r.Kind, uintptr(r.Errno))
		case r.Pages == 0 || r.Pages > left:
			return nil, 0, fmt.Errorf("decode runs: %w: %d pages where %d are left", ErrProtocol, r.Pages, left)
		}
		left -= r.Pages
		if r.Kind == KindData {
			data += int(r.Pages) * PageSize
		}
		runs = append(runs, r)
	}
	if left != 0 {
		return nil, 0, fmt.Errorf("decode runs: %w: %d pages not covered", ErrProtocol, left)
	}
	return runs, data, d.Err()
}
