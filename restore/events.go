package restore

import (
	"sync"

	"github.com/lazymig/lazymig/restore/memory"
)

// EventKind tells what happened in a capsule.
type EventKind string

// The kinds.
const (
	EventProgress    EventKind = "progress"     // Stats
	EventFilled      EventKind = "filled"       // Stats: what is not there was copied ahead
	EventDrained     EventKind = "drained"      // Stats: all memory is here
	EventExited      EventKind = "exited"       // Status: the tree's root task has ended
	EventHandlerLost EventKind = "handler-lost" // a new one is on its way
	EventProblem     EventKind = "problem"      // Text
	EventCore        EventKind = "core"         // Text: a core dump lacks what had not come
	EventNeverRuns   EventKind = "never-runs"   // Text: criu has died over the tree that it held, see ErrNeverRuns
)

// Event is one thing that happened.
type Event struct {
	Kind   EventKind
	Stats  memory.Stats
	Status int // as wait(2) gives it
	Text   string
}

// eventQueue never blocks who puts. Only the newest progress is kept, so it stays short when nobody reads.
type eventQueue struct {
	out  chan Event
	quit chan struct{}
	done chan struct{}

	mu     sync.Mutex
	q      []Event
	wake   chan struct{}
	ended  bool
	closed bool
}

func newEventQueue() *eventQueue {
	q := &eventQueue{out: make(chan Event), quit: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go q.pump() // ends at close; close waits for it
	return q
}

func (q *eventQueue) put(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return
	}
	if n := len(q.q); e.Kind == EventProgress && n > 0 && q.q[n-1].Kind == EventProgress {
		q.q[n-1] = e
	} else {
		q.q = append(q.q, e)
	}
	q.poke()
}

func (q *eventQueue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// end lets the reader have what is queued and then closes its channel.
func (q *eventQueue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.poke()
}

// close drops what nobody has read.
func (q *eventQueue) close() {
	q.end()
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.quit)
	}
	q.mu.Unlock()
	<-q.done
}

func (q *eventQueue) pump() {
	defer close(q.done)
	defer close(q.out)
	for {
		q.mu.Lock()
		var e Event
		some := len(q.q) > 0
		if some {
			e, q.q = q.q[0], q.q[1:]
		}
		ended := q.ended
		q.mu.Unlock()
		if !some {
			if ended {
				return
			}
			select {
			case <-q.wake:
			case <-q.quit:
				return
			}
			continue
		}
		select {
		case q.out <- e:
		case <-q.quit:
			return
		}
	}
}

// Events tells what happens in the capsule. It is closed when the guardian has ended and all has been read, or at Close.
func (c *Capsule) Events() <-chan Event { return c.events.out }
