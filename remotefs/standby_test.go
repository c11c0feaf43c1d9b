package remotefs

import (
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// killer is the journal of a server that is "killed" when it wants to write its message number n: that one and all that follow are lost, and whoever writes
// goes no further.
type killer struct {
	t    *testing.T
	st   *Standby
	file *JournalFile             // nil: none is written
	next func() (*Standby, error) // what another server goes on with
	die  func()
	gate chan struct{} // closed when the test is over

	mu   sync.Mutex
	n    int
	dead bool
}

func (k *killer) Send(b []byte, fds ...int) error {
	k.mu.Lock()
	if k.n == 0 && !k.dead {
		k.dead = true
		go k.die()
	}
	if k.dead {
		k.mu.Unlock()
		<-k.gate
		return errors.New("killed")
	}
	defer k.mu.Unlock()
	k.n--
	if k.file != nil {
		return k.file.Send(b, fds...)
	}
	return into(k.st, b, fds...)
}

func (k *killer) killed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.dead
}

// into is a journal's way to a standby of the same process.
func into(st *Standby, b []byte, fds ...int) error {
	fd := -1
	if len(fds) > 0 {
		var err error
		if fd, err = unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return err
		}
	}
	return st.Apply(b, fd)
}

type toStandby struct{ *Standby }

func (s toStandby) Send(b []byte, fds ...int) error { return into(s.Standby, b, fds...) }

// handOver gives what the standby has, handed over once more.
func (k *killer) handOver() (*Standby, error) {
	var next Standby
	return &next, k.st.Hand(toStandby{&next})
}

// killAt lets the server be killed before its n-th message from now on. Another goes on with what the journal has.
func (l *line) killAt(n int) *killer {
	k := &killer{t: l.t, st: &Standby{}, gate: make(chan struct{}), n: -1}
	k.next = k.handOver
	l.kill(k, n)
	return k
}

func (l *line) kill(k *killer, n int) {
	old := l.server()
	k.die = func() {
		next, err := k.next()
		if err != nil {
			l.t.Error(err)
			return
		}
		s, err := NewServerFrom(next, ServerOptions{})
		if err != nil {
			l.t.Error(err)
			return
		}
		l.mu.Lock()
		l.s = s
		nc := l.nc
		l.mu.Unlock()
		_ = nc.Close()
	}
	old.SetJournal(k, nil)
	k.mu.Lock()
	k.n = n
	k.mu.Unlock()
	l.t.Cleanup(func() { // before the line's: the old server can end then
		close(k.gate)
		if l.server() != old {
			within(l.t, "the killed server's end", func() { _ = old.Close() })
		}
		k.st.Close()
	})
}

// TestServerKilled kills the server at each message that each operation writes to the journal: nobody can tell afterwards.
func TestServerKilled(t *testing.T) {
	for name := range operations {
		t.Run(name, func(t *testing.T) {
			want := outcome(t, name, nil, nil, 0)
			kills := 0
			for n := 0; ; n++ {
				var k *killer
				got := outcome(t, name, nil, func(l *line) { k = l.killAt(n) }, 0)
				if got != want {
					t.Errorf("killed at message %d:\n%s\nwant\n%s", n, got, want)
				}
				if !k.killed() {
					break
				}
				kills++
			}
			if ops[typeOf(name)].once && kills == 0 {
				t.Error("nothing was written to the journal")
			}
		})
	}
}
