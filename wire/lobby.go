package wire

import (
	"net"
	"slices"
	"sync"
)

// Lobby bounds the connections of one process whose peers have not shown yet who they are. One more than Max ends the oldest: whoever opens
// connections and says nothing can't keep out a peer that goes on at once.
type Lobby struct {
	Max int

	mu sync.Mutex
	in []net.Conn // oldest first
}

// Enter notes a new connection. leave, which may be called more than once, is to be called when its peer is known, or it has ended.
func (l *Lobby) Enter(nc net.Conn) (leave func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.in) >= l.Max && len(l.in) > 0 {
		_ = l.in[0].Close() // its reader tells
		l.in = slices.Delete(l.in, 0, 1)
	}
	l.in = append(l.in, nc)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if i := slices.Index(l.in, nc); i >= 0 {
			l.in = slices.Delete(l.in, i, i+1)
		}
	}
}
