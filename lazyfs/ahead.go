package lazyfs

import (
	"context"
	"math"
	"sync"
	"syscall"

	"github.com/lazymig/lazymig/wire"
)

// ahead reads files before the kernel asks, where reading goes on in order or by equal steps, and asks for a range that is wanted by several once.
// The kernel's own readahead is one request ahead, which on a long line is one request a round trip.
//
// Who changes a file is the tree, through here: a change takes away what is here of the file before it begins, and nothing is read ahead until it has
// ended. So what is here is what a read that comes now would get. A read that waits for a range is concurrent with any change that takes it away meanwhile.
type ahead struct {
	Remote
	ctx context.Context
	on  func() bool // nobody else changes files
	wg  sync.WaitGroup

	mu      sync.Mutex
	files   map[uint64]*aheadFile // by node, those with anything in them
	readers map[readerKey]*reader
	sizes   map[uint64]uint64 // of regular files that the kernel knows, where they have not changed since: where to stop
	order   []*aheadRange     // oldest first, with ranges that have gone
	bytes   uint64            // of ranges that are here or on their way
}

type aheadFile struct {
	changing int
	ranges   []*aheadRange
}

// aheadRange is a part of a file that is here or on its way.
type aheadRange struct {
	node, off, size uint64
	by              *reader
	ready           chan struct{}

	// Once ready is closed.
	b   []byte // less than size at the end of the file
	err error

	// ahead.mu
	taken   uint64 // how much of it has been given to readers
	dropped bool
}

func (r *aheadRange) end() uint64 { return r.off + r.size }

type readerKey struct{ node, h uint64 }

// reader is what is known of one handle's reads.
type reader struct {
	last, end uint64 // of the read before
	stride    uint64 // from the beginning of one to that of the next; 0: in order
	hits      int    // reads that came as expected
	upTo      uint64 // what has been asked for ahead, in order; the beginning of the last one, by steps
	window    uint64 // how far to be ahead
	eof       uint64 // where the file ended
}

const (
	aheadPiece  = 256 << 10 // bytes asked for at a time
	aheadFirst  = 1 << 20   // bytes ahead, at first
	aheadWindow = 8 << 20   // and at most
	aheadBytes  = 64 << 20  // that are kept
	aheadSteps  = 16        // reads ahead, by steps
)

func newAhead(ctx context.Context, r Remote) *ahead {
	return &ahead{Remote: r, ctx: ctx, files: map[uint64]*aheadFile{}, sizes: map[uint64]uint64{}, readers: map[readerKey]*reader{}}
}

// Read fills b from what is here or on its way, and from the source; it is short at the end of the file only.
func (a *ahead) Read(ctx context.Context, node, h, off uint64, b []byte) (int, error) {
	if len(b) == 0 || !a.on() || off > math.MaxInt64-wire.MaxFileIO {
		return a.Remote.Read(ctx, node, h, off, b)
	}
	a.mu.Lock()
	parts := a.cover(node, off, b)
	next := a.expect(node, h, off, uint64(len(b)), parts)
	a.mu.Unlock()
	for _, r := range next {
		a.wg.Go(func() { a.fetch(h, r) })
	}
	return a.collect(ctx, node, h, parts)
}

// part is a piece of a read: from a range, or from the source.
type part struct {
	off uint64
	b   []byte
	r   *aheadRange
}

// cover splits a read into what is here or on its way and what is not; with mu.
func (a *ahead) cover(node, off uint64, b []byte) []part {
	var parts []part
	f := a.files[node]
	for len(b) > 0 {
		p := part{off: off, b: b}
		if f != nil {
			for _, r := range f.ranges {
				switch {
				case r.off <= off && off < r.end():
					p.r, p.b = r, b[:min(uint64(len(b)), r.end()-off)]
				case off < r.off && r.off < off+uint64(len(p.b)) && p.r == nil:
					p.b = b[:r.off-off]
				}
			}
		}
		parts = append(parts, p)
		b, off = b[len(p.b):], off+uint64(len(p.b))
	}
	return parts
}

// collect waits for all parts.
func (a *ahead) collect(ctx context.Context, node, h uint64, parts []part) (int, error) {
	type result struct {
		n   int
		err error
	}
	results := make([]result, len(parts))
	var wg sync.WaitGroup
	for i := range parts {
		if parts[i].r == nil && i > 0 {
			wg.Go(func() { results[i].n, results[i].err = a.Remote.Read(ctx, node, h, parts[i].off, parts[i].b) })
		}
	}
	for i := range parts {
		p := &parts[i]
		switch {
		case p.r != nil:
			results[i].n, results[i].err = a.take(ctx, h, p)
		case i == 0:
			results[i].n, results[i].err = a.Remote.Read(ctx, node, h, p.off, p.b)
		}
	}
	wg.Wait()
	n := 0
	for i, r := range results {
		if r.err != nil {
			if n > 0 {
				break // told by the next read
			}
			return 0, r.err
		}
		if n += r.n; r.n < len(parts[i].b) {
			break
		}
	}
	return n, nil
}

// take gets a part from a range, or from the source if that could not be read.
func (a *ahead) take(ctx context.Context, h uint64, p *part) (int, error) {
	select {
	case <-p.r.ready:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if p.r.err != nil {
		return a.Remote.Read(ctx, p.r.node, h, p.off, p.b)
	}
	n := 0
	if at := p.off - p.r.off; at < uint64(len(p.r.b)) {
		n = copy(p.b, p.r.b[at:])
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.r.taken += uint64(n); p.r.taken >= uint64(len(p.r.b)) { // the kernel has it now
		a.drop(p.r)
	}
	return n, nil
}

// expect learns from a read what comes next, and says what is to be asked for; with mu.
func (a *ahead) expect(node, h, off, n uint64, parts []part) []*aheadRange {
	k := readerKey{node, h}
	r := a.readers[k]
	if r == nil {
		r = &reader{window: aheadFirst, eof: noEnd}
		if size, ok := a.sizes[node]; ok {
			r.eof = size
		}
		a.readers[k] = r
		r.last, r.end = off, off+n
		if off == 0 {
			r.hits, r.upTo = 1, n // most are read from the beginning to the end
		}
		return nil
	}
	step := off - r.last
	switch {
	case r.stride == 0 && off <= r.end+n && off+r.window >= r.end && r.hits > 0: // requests may come a little out of order
		r.hits++
	case off == r.end:
		r.hits, r.stride, r.upTo = 1, 0, off+n
	case off > r.last && step == r.stride:
		r.hits++
	case off > r.last && step < math.MaxInt32:
		r.hits, r.stride, r.upTo = 0, step, off
	default:
		r.hits, r.stride = 0, 0
	}
	r.last, r.end = off, max(off+n, r.end*uint64(min(r.hits, 1)))
	if r.hits < 2 {
		return nil
	}
	f := a.files[node]
	if f != nil && f.changing > 0 {
		return nil
	}
	if r.stride > n {
		return a.steps(node, r, off, n)
	}
	if r.stride > 0 { // they overlap: in order, so to say
		return nil
	}
	for _, p := range parts {
		if p.r == nil || !p.r.isReady() { // it had to wait
			r.window = min(2*r.window, aheadWindow)
			break
		}
	}
	var list []*aheadRange
	r.upTo = max(r.upTo, r.end)
	for r.upTo < min(r.end+r.window, r.eof) && a.bytes+aheadPiece <= aheadBytes+aheadWindow {
		n := min(aheadPiece, r.eof-r.upTo)
		list = append(list, a.add(node, r, r.upTo, n))
		r.upTo += n
	}
	return list
}

// steps asks for the next ones of reads that are equally far apart; with mu.
func (a *ahead) steps(node uint64, r *reader, off, n uint64) []*aheadRange {
	var list []*aheadRange
	r.upTo = max(r.upTo, off)
	for r.upTo+r.stride <= off+aheadSteps*r.stride && r.upTo+r.stride < r.eof && a.bytes+n <= aheadBytes+aheadWindow {
		r.upTo += r.stride
		list = append(list, a.add(node, r, r.upTo, min(n, aheadPiece)))
	}
	return list
}

func (r *aheadRange) isReady() bool {
	select {
	case <-r.ready:
		return true
	default:
		return false
	}
}

// add makes a range that is to be fetched; with mu.
func (a *ahead) add(node uint64, by *reader, off, size uint64) *aheadRange {
	r := &aheadRange{node: node, off: off, size: size, by: by, ready: make(chan struct{})}
	f := a.files[node]
	if f == nil {
		f = &aheadFile{}
		a.files[node] = f
	}
	f.ranges = append(f.ranges, r)
	a.order = append(a.order, r)
	a.bytes += size
	for a.bytes > aheadBytes && len(a.order) > 1 {
		old := a.order[0]
		a.order = a.order[1:]
		a.drop(old)
	}
	return r
}

// fetch reads a range.
func (a *ahead) fetch(h uint64, r *aheadRange) {
	b := make([]byte, r.size)
	n, err := a.Remote.Read(a.ctx, r.node, h, r.off, b)
	a.mu.Lock()
	defer a.mu.Unlock()
	r.b, r.err = b[:n], err
	close(r.ready)
	if err != nil {
		a.drop(r)
	} else if uint64(n) < r.size && !r.dropped { // else a change may have made the file longer
		r.by.eof = min(r.by.eof, r.off+uint64(n))
		if n == 0 {
			a.drop(r)
		}
	}
}

// drop takes a range away; who waits for it gets it. With mu.
func (a *ahead) drop(r *aheadRange) {
	if r.dropped {
		return
	}
	r.dropped = true
	a.bytes -= r.size
	f := a.files[r.node]
	for i, x := range f.ranges {
		if x == r {
			f.ranges = append(f.ranges[:i], f.ranges[i+1:]...)
			break
		}
	}
	a.tidy(r.node, f)
	for len(a.order) > 0 && a.order[0].dropped {
		a.order = a.order[1:]
	}
}

func (a *ahead) tidy(node uint64, f *aheadFile) {
	if f.changing == 0 && len(f.ranges) == 0 {
		delete(a.files, node)
	}
}

// begins is before a change of what a file holds.
func (a *ahead) begins(c *change) {
	if c.data == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.files[c.data]
	if f == nil {
		f = &aheadFile{}
		a.files[c.data] = f
	}
	f.changing++
	delete(a.sizes, c.data)
	for len(f.ranges) > 0 {
		r := f.ranges[0]
		r.by.eof, r.by.upTo, r.by.hits = noEnd, 0, 0
		a.drop(r)
	}
	for k, r := range a.readers {
		if k.node == c.data {
			r.eof, r.upTo, r.hits = noEnd, 0, 0
		}
	}
}

func (a *ahead) ended(c *change) {
	if c.data == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.files[c.data] // it stays while it is changing
	f.changing--
	a.tidy(c.data, f)
}

// knows notes what the kernel is told of a node.
func (a *ahead) knows(node uint64, attr *wire.FileAttr) {
	if attr.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if f := a.files[node]; f == nil || f.changing == 0 {
		a.sizes[node] = attr.Size
	}
}

// forgot is when the kernel no longer knows a node.
func (a *ahead) forgot(node uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sizes, node)
}

// Release ends a handle, and what was read ahead for it.
func (a *ahead) Release(node, h uint64) {
	a.mu.Lock()
	if r := a.readers[readerKey{node, h}]; r != nil {
		delete(a.readers, readerKey{node, h})
		if f := a.files[node]; f != nil {
			for _, x := range append([]*aheadRange(nil), f.ranges...) {
				if x.by == r {
					a.drop(x)
				}
			}
		}
	}
	a.mu.Unlock()
	a.Remote.Release(node, h)
}
