package wire

import (
	"net"
	"slices"
	"testing"
)

// closable is a connection that only knows whether it has been closed.
type closable struct {
	net.Conn
	closed bool
}

func (c *closable) Close() error { c.closed = true; return nil }

func TestLobby(t *testing.T) {
	l := Lobby{Max: 3}
	var all []*closable
	var leave []func()
	enter := func() {
		c := &closable{}
		all = append(all, c)
		leave = append(leave, l.Enter(c))
	}
	closed := func() (n []int) {
		for i, c := range all {
			if c.closed {
				n = append(n, i)
			}
		}
		return n
	}
	for range 3 {
		enter()
	}
	leave[1]()
	leave[1]()
	enter() // there is room
	if n := closed(); n != nil {
		t.Fatalf("%v were ended too early", n)
	}
	enter()
	leave[0]() // ended already
	enter()
	if n := closed(); !slices.Equal(n, []int{0, 2}) {
		t.Fatalf("%v were ended, not the oldest", n)
	}
	for _, f := range leave {
		f()
	}
	if len(l.in) != 0 {
		t.Errorf("%d connections are remembered", len(l.in))
	}
}
