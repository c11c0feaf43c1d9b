package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// Streamed writes (Options.Stream). After the grant a write is answered when it lies in a window (window.go), and goes to the source behind the tree's back. The window is a file: a daemon that succeeds
// this one finds there what the source has not answered, and sends it again under the same numbers, so that each takes effect once.
//
//	taken      in the window; whoever keeps something of the file has been told that it changes (changes.go); the tree goes on
//	sent       in the order of taking, many at a time. The source does all that is asked of a node after the writes to it that were sent before, so whoever asks
//	           for something that the write may have changed waits for this and no longer
//	answered   the change is over, the Watcher is told. FLUSH and RELEASE wait for this, as do FORGET, which would take the node away, copies between files, and who stops the tree
//	           for good (Daemon.Settle). An error is kept for the open files (streamerrors.go)
//	given up   answered, and the kernel has the reply to the write, too, which it else sends again: the oldest first. Then the source may forget its answer
//
// A full window lets writers wait. What is to be on the disk (O_SYNC, O_DSYNC), pages that the kernel writes back by itself, and what might find the source's disk full
// (room.go) is not streamed: it is sent behind what is, and waited for. No lookup shows what a file was before: one that the source may have answered before a write is followed by
// a question for the attributes.
//
// TestStreamTrips, TestStreamKilled, TestModelKilled and TestModelCut show it.
type stream struct {
	Remote  // changes
	changes *changes
	to      Remote // below changes
	ctx     context.Context
	f       *fsys
	errs    streamErrors
	spare   uint64        // roomLeft
	stays   time.Duration // roomStays
	wg      sync.WaitGroup

	on      atomic.Bool
	takeMu  sync.Mutex // writes are taken one after the other; before mu
	pruneMu sync.Mutex // and given up; before mu

	mu       sync.Mutex
	w        *window
	log      []*streamed            // all in the window
	unsent   []*streamed            // the end of log
	numbers  map[uint64]*streamed   // by the kernel's
	nodes    map[uint64][]*streamed // not answered
	changed  map[uint64]uint64      // nodes → clock of the last answer
	clock    uint64                 // counts answers
	floor    uint64                 // what was asked before this may have been changed by anything
	rooms    map[uint64]*room
	taken    uint64 // writes
	spent    uint64 // bytes that were streamed so far
	inFlight int    // requests that are sent, up to when they are given up
	bytes    int    // and their bytes, up to the answer
	moved    chan struct{}
	lost     chan struct{} // closed when the source is lost for good
	why      error
}

// streamed is one write.
type streamed struct {
	keptWrite
	over     func() // the change
	sent     chan struct{}
	answered chan struct{}
	isDone   bool
	told     bool // the kernel has the reply
}

const (
	windowName = "writes"
	// streamRequests leaves the lane half of the requests that it may have under way, and streamBytes is what 100 MB/s need at 40 ms.
	streamRequests = 128
	streamBytes    = 4 << 20
)

func newStream(ctx context.Context, f *fsys, c *changes) *stream {
	return &stream{
		Remote: c, changes: c, to: c.Remote, ctx: ctx, f: f, spare: roomLeft, stays: roomStays,
		numbers: map[uint64]*streamed{}, nodes: map[uint64][]*streamed{}, changed: map[uint64]uint64{}, rooms: map[uint64]*room{},
		moved: make(chan struct{}), lost: make(chan struct{}),
	}
}

// begin makes the window in dir. Without one writes wait for the source.
func (s *stream) begin(dir string) {
	w, err := newWindow(filepath.Join(dir, windowName), windowSize)
	if err != nil {
		s.f.log.Warn("writes are not streamed: each waits for the source", "err", err)
		return
	}
	s.run(w, nil, dir)
}

// resume takes over the window of a daemon before this one; who asks the source for anything comes later.
func (s *stream) resume(dir string) error {
	w, list, err := openWindow(filepath.Join(dir, windowName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.errs.load(dir)
	}
	if err != nil {
		return err
	}
	s.run(w, list, dir)
	return nil
}

func (s *stream) run(w *window, list []*keptWrite, dir string) {
	s.errs.dir = dir
	s.mu.Lock()
	s.w = w
	for _, k := range list {
		s.enterLocked(&streamed{keptWrite: *k, over: s.beginChange(k.node)})
	}
	s.mu.Unlock()
	s.on.Store(true)
	s.wg.Go(s.send)
}

// beginChange makes void what is known of a file.
func (s *stream) beginChange(node uint64) (over func()) {
	s.f.clock.begin()
	done := s.changes.contents(node)
	return func() { done(); s.f.clock.end() }
}

func (s *stream) enterLocked(r *streamed) {
	r.sent, r.answered = make(chan struct{}), make(chan struct{})
	s.log, s.unsent = append(s.log, r), append(s.unsent, r)
	s.taken++
	s.spent += uint64(len(r.b))
	s.numbers[r.number] = r
	s.nodes[r.node] = append(s.nodes[r.node], r)
	s.moveLocked()
}

// moveLocked wakes who waits for any change.
func (s *stream) moveLocked() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// take takes a write; false: it can't be streamed, and is to be sent as any other. b is the caller's.
func (s *stream) take(who wire.FileCaller, node, h, off uint64, flags uint32, b []byte) bool {
	if !s.on.Load() || !s.hasRoom(node, len(b)) {
		return false
	}
	over := s.beginChange(node)
	r := &streamed{over: over, keptWrite: keptWrite{
		number: who.Number, node: node, handle: h, off: off, flags: flags, uid: who.UID, gid: who.GID, b: append([]byte(nil), b...),
	}}
	s.takeMu.Lock()
	defer s.takeMu.Unlock()
	for {
		s.mu.Lock()
		ok := s.w.room(len(b))
		moved, lost := s.moved, s.why != nil
		s.mu.Unlock()
		if lost {
			over()
			return false
		}
		if ok {
			break
		}
		select {
		case <-moved:
		case <-s.ctx.Done():
			over()
			return false
		}
	}
	if err := s.w.add(&r.keptWrite); err != nil { // of the window nobody else changes the end
		over()
		s.f.log.Warn("write is not streamed", "err", err)
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterLocked(r)
	return true
}

// send sends what is in the window, in its order.
func (s *stream) send() {
	for {
		s.mu.Lock()
		var r *streamed
		if len(s.unsent) > 0 && s.inFlight < streamRequests && (s.bytes == 0 || s.bytes+len(s.unsent[0].b) <= streamBytes) && s.why == nil {
			r = s.unsent[0]
			s.inFlight++
			s.bytes += len(r.b)
		}
		moved := s.moved
		s.mu.Unlock()
		if r == nil {
			select {
			case <-moved:
				continue
			case <-s.ctx.Done():
				return
			}
		}
		over := make(chan struct{})
		s.wg.Go(func() {
			defer close(over)
			who := wire.FileCaller{UID: r.uid, GID: r.gid, Number: r.number}
			s.answer(r, s.to.Stream(s.ctx, who, r.node, r.handle, r.off, r.flags, r.b, func() { s.isSent(r) }))
		})
		select {
		case <-r.sent:
		case <-over:
		}
	}
}

func (s *stream) isSent(r *streamed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsent = s.unsent[1:]
	close(r.sent)
}

// answer takes the source's answer to a write.
func (s *stream) answer(r *streamed, err error) {
	if errno := told(err); err != nil && errno == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.why == nil { // it stays in the window
			s.why = err
			close(s.lost)
			s.moveLocked()
		}
		return
	} else if err != nil {
		s.failed(r, err, errno)
	}
	r.over()
	s.f.watch.wrote(r.node, r.off, r.upTo())
	s.mu.Lock()
	s.clock++
	if len(s.changed) >= maxChanged {
		clear(s.changed)
		s.floor = s.clock
	}
	s.changed[r.node] = s.clock
	if s.nodes[r.node] = without(s.nodes[r.node], r); len(s.nodes[r.node]) == 0 {
		delete(s.nodes, r.node)
	}
	s.bytes -= len(r.b)
	r.isDone = true
	close(r.answered)
	s.moveLocked()
	s.mu.Unlock()
	s.prune()
}

// upTo is the end of what a write changes.
func (r *streamed) upTo() uint64 {
	if r.flags&wire.FileWriteAppend != 0 {
		return noEnd
	}
	return r.off + uint64(len(r.b))
}

func without(list []*streamed, r *streamed) []*streamed {
	for i, x := range list {
		if x == r {
			return append(list[:i:i], list[i+1:]...)
		}
	}
	return list
}

// failed notes that the tree has been told a write to be done which can't be.
func (s *stream) failed(r *streamed, err error, errno syscall.Errno) {
	s.f.log.Error("a write that the tree went on after could not be done at the source; it hears of it at fsync or close",
		"node", r.node, "offset", r.off, "bytes", len(r.b), "err", err)
	if err := s.errs.add(r.node, errno, r.seq); err != nil {
		s.f.log.Error("keep error of a write for a successor", "err", err)
	}
	s.noRoom(r.node)
	s.wg.Go(func() { s.f.dev.invalInode(r.node, 0) }) // the kernel has pages and a size that the source has not
}

// prune gives up the oldest records that nobody needs any more.
func (s *stream) prune() {
	s.pruneMu.Lock()
	defer s.pruneMu.Unlock()
	s.mu.Lock()
	n := 0
	for n < len(s.log) && s.log[n].isDone && s.log[n].told {
		n++
	}
	gone := s.log[:n:n]
	s.mu.Unlock()
	if n == 0 {
		return
	}
	last := gone[n-1]
	if err := s.w.release(last.end, last.seq+1); err != nil {
		s.f.log.Error("the window for writes stays full", "err", err)
		return
	}
	s.mu.Lock()
	s.w.head = last.end
	s.log = s.log[n:]
	s.inFlight -= n
	for _, r := range gone {
		delete(s.numbers, r.number)
	}
	s.moveLocked()
	s.mu.Unlock()
	for _, r := range gone {
		s.to.Settled(r.number)
	}
}

// has says whether a write that comes again has been taken.
func (s *stream) has(number uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.numbers[number] != nil
}

// Settled: the answer to a write that was taken is wanted until it is given up.
func (s *stream) Settled(number uint64) {
	s.mu.Lock()
	r := s.numbers[number]
	if r != nil {
		r.told = true
	}
	s.mu.Unlock()
	if r == nil {
		s.to.Settled(number)
		return
	}
	s.prune()
}

// TakenOver: again has the numbers of what comes again from the kernel, to which those of the window are added.
func (s *stream) TakenOver(again map[uint64]bool) {
	s.mu.Lock()
	for number, r := range s.numbers {
		r.told = r.told || !again[number]
		again[number] = true
	}
	s.mu.Unlock()
	s.to.TakenOver(again)
	s.prune()
}

// pending says whether writes, to a file or at all (0), are not answered.
func (s *stream) pending(node uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return node == 0 && len(s.nodes) > 0 || len(s.nodes[node]) > 0
}

// behind waits until all that was taken for a file has been sent: what is asked now is done after it.
func (s *stream) behind(ctx context.Context, node uint64) error {
	s.mu.Lock()
	list := s.nodes[node]
	var last *streamed
	if len(list) > 0 {
		last = list[len(list)-1] // they are sent in order
	}
	s.mu.Unlock()
	if last == nil {
		return nil
	}
	return s.await(ctx, last.sent)
}

// done waits until all that was taken for a file has been answered.
func (s *stream) done(ctx context.Context, node uint64) error {
	s.mu.Lock()
	list := append([]*streamed(nil), s.nodes[node]...)
	s.mu.Unlock()
	for _, r := range list {
		if err := s.await(ctx, r.answered); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-s.lost:
		return s.why
	case <-ctx.Done():
		return fmt.Errorf("wait for writes to reach the source: %w", context.Cause(ctx))
	}
}

// settle waits until nothing is pending.
func (s *stream) settle(ctx context.Context) error {
	s.mu.Lock()
	nodes := make([]uint64, 0, len(s.nodes))
	for node := range s.nodes {
		nodes = append(nodes, node)
	}
	s.mu.Unlock()
	for _, node := range nodes {
		if err := s.done(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// lastWait is how long a daemon whose mount is gone tries to bring to the source what the tree has written.
const lastWait = time.Minute

// unmounted is settle at the end of the mount.
func (s *stream) unmounted() {
	ctx, stop := context.WithTimeout(s.ctx, lastWait)
	defer stop()
	if err := s.settle(ctx); err != nil {
		s.mu.Lock()
		n := len(s.log)
		s.mu.Unlock()
		s.f.log.Error("the mount is gone, and writes of the tree have not reached the source", "writes", n, "err", err)
	}
}

// close is after the context's end.
func (s *stream) close() {
	s.wg.Wait()
	if s.w != nil {
		_ = s.w.f.Close()
	}
}
