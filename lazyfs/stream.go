package lazyfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Streamed writes (Options.Stream). After the grant a write is answered when it lies in a window (window.go), and goes to the source behind the tree's back. The window is a file: a daemon that succeeds
// this one finds there what the source has not answered, and sends it again under the same numbers, so that each takes effect once.
//
//	taken      (stream_take.go) in the window; whoever keeps something of the file has been told that it changes (changes.go); the tree goes on
//	sent       (stream_send.go) a file's in the order of taking, many at a time. The source does all that is asked of a node after the writes to it that were sent before, so whoever asks
//	           for something that the write may have changed waits for this and no longer
//	answered   (stream_wait.go) the change is over, the Watcher is told. FLUSH and RELEASE wait for this, as do FORGET, which would take the node away, copies between files, and who stops the tree
//	           for good (Daemon.Settle). An error is kept for the open files (streamerrors.go)
//	given up   answered, and the kernel has the reply to the write, too, which it else sends again. Then the source may forget its answer
//
// Where the window is full a write waits for the source. A file that the source does not come to the end with has no more than half of what there is for requests, the next one half of the rest.
// What is to be on the disk (O_SYNC, O_DSYNC), pages that the kernel writes back by itself, and what might find the source's disk full
// (room.go) is not streamed: it is sent behind what is, and waited for. Before the tree is stopped nothing is streamed for a while (Daemon.Calm): the stop must not be as long as a slow
// line needs for a full window. No lookup shows what a file was before: one that the source may have answered before a write is followed by
// a question for the attributes.
//
// TestStreamTrips, TestStreamKilled, TestStreamCalm, TestModelKilled and TestModelCut show it.
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

	mu      sync.Mutex
	w       *window
	log     []*streamed            // all in the window
	unsent  map[uint64][]*streamed // by node, in the order of log
	turns   []uint64               // the nodes that have some, in the order in which it is their turn
	numbers map[uint64]*streamed   // by the kernel's
	nodes   map[uint64][]*streamed // not answered
	changed map[uint64]uint64      // nodes → clock of the last answer
	clock   uint64                 // counts answers
	floor   uint64                 // what was asked before this may have been changed by anything
	rooms   map[uint64]*room
	calmers int           // who waits for calm
	calm    time.Time     // nothing is streamed before
	calms   time.Duration // calmTime
	taken   uint64        // writes
	spent   uint64        // bytes that were streamed so far
	ready   []*streamed   // to be given up
	flying  load          // requests that are sent, up to when they are given up, and their bytes
	flies   map[uint64]load
	moved   chan struct{}
	lost    chan struct{} // closed when the source is lost for good
	why     error
}

// streamed is one write.
type streamed struct {
	keptWrite
	over     func() // the change
	sent     chan struct{}
	answered chan struct{}
	isDone   bool
	told     bool // the kernel has the reply
	given    bool // up
}

// load is what is under way.
type load struct{ requests, bytes int }

const (
	windowName = "writes"
	// streamRequests leaves the lane half of the requests that it may have under way, and half of streamBytes, which one file may have, is what 100 MB/s need at 40 ms.
	streamRequests = 128
	streamBytes    = 8 << 20
)

func newStream(ctx context.Context, f *fsys, c *changes) *stream {
	return &stream{
		Remote: c, changes: c, to: c.Remote, ctx: ctx, f: f, spare: roomLeft, stays: roomStays, calms: calmTime,
		numbers: map[uint64]*streamed{}, nodes: map[uint64][]*streamed{}, changed: map[uint64]uint64{}, rooms: map[uint64]*room{},
		unsent: map[uint64][]*streamed{}, flies: map[uint64]load{},
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
		if k.marked {
			s.log = append(s.log, &streamed{keptWrite: *k, isDone: true, told: true, given: true})
			continue
		}
		s.enterLocked(&streamed{keptWrite: *k, over: s.beginChange(k.node)})
	}
	s.mu.Unlock()
	s.on.Store(true)
	s.wg.Go(s.send)
}

// close is after the context's end.
func (s *stream) close() {
	s.wg.Wait()
	if s.w != nil {
		_ = s.w.f.Close()
	}
}
