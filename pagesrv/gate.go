package pagesrv

import "sync"

// gate lets bulk requests stand back for urgent ones. A bulk request waits only for those that had begun when it
// came to the gate, so an endless stream of urgent requests slows bulk down but does not stop it.
type gate struct {
	mu    sync.Mutex
	cond  sync.Cond
	begun uint64
	ended uint64

	standing int // bulk requests that wait
}

func newGate() *gate {
	g := &gate{}
	g.cond.L = &g.mu
	return g
}

// enter and leave enclose an urgent request.
func (g *gate) enter() {
	g.mu.Lock()
	g.begun++
	g.mu.Unlock()
}

func (g *gate) leave() {
	g.mu.Lock()
	g.ended++
	g.mu.Unlock()
	g.cond.Broadcast()
}

// stand waits until as many urgent requests have ended as have begun by now.
func (g *gate) stand() {
	g.mu.Lock()
	for begun := g.begun; g.ended < begun; {
		g.standing++
		g.cond.Wait()
		g.standing--
	}
	g.mu.Unlock()
}
