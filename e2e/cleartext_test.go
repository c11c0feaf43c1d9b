package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/wire"
)

// inNet calls f on a thread in the host's network: sockets that it makes stay there.
func inNet(h *lab.Host, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", h.Pid))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// tap is a man in the middle who listens on A and passes all on to the agent on B, except while it is cut.
type tap struct {
	r    *rig
	addr string
	ln   net.Listener
	wg   sync.WaitGroup

	mu    sync.Mutex
	lines []*tapped
}

// tapped is one connection, and what each side said at its beginning.
type tapped struct {
	near, far net.Conn

	mu             sync.Mutex
	source, target []byte
}

const tapKeeps = 4096

func newTap(r *rig) *tap {
	t := &tap{r: r, addr: r.l.A.Addr + ":7071"}
	if err := inNet(r.l.A, func() (err error) {
		t.ln, err = net.Listen("tcp", t.addr)
		return err
	}); err != nil {
		r.t.Fatalf("listen on A: %v", err)
	}
	t.wg.Go(t.accept)
	r.t.Cleanup(func() {
		t.ln.Close()
		t.cut()
		t.wg.Wait()
	})
	return t
}

func (t *tap) accept() {
	for {
		near, err := t.ln.Accept()
		if err != nil {
			return
		}
		far, err := t.dial()
		if err != nil {
			t.r.t.Errorf("pass connection on: %v", err)
			near.Close()
			continue
		}
		l := &tapped{near: near, far: far}
		t.mu.Lock()
		t.lines = append(t.lines, l)
		t.mu.Unlock()
		t.wg.Go(func() { l.pass(l.near, l.far, &l.source) })
		t.wg.Go(func() { l.pass(l.far, l.near, &l.target) })
	}
}

// dial connects to the agent as somebody on A would.
func (t *tap) dial() (c net.Conn, err error) {
	err = inNet(t.r.l.A, func() error {
		c, err = net.Dial("tcp", t.r.l.B.Addr+":"+agentPort)
		return err
	})
	return c, err
}

func (l *tapped) pass(from, to net.Conn, seen *[]byte) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		l.mu.Lock()
		*seen = append(*seen, b[:min(n, tapKeeps-len(*seen))]...)
		l.mu.Unlock()
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			from.Close()
			to.Close()
			return
		}
	}
}

// cut ends all connections.
func (t *tap) cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.lines {
		l.near.Close()
		l.far.Close()
	}
}

// beginning is what source and target said first on the newest connection of a lane.
func (t *tap) beginning(lane wire.Lane) (source, target []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.lines {
		l.mu.Lock()
		if len(l.source) >= wire.PreambleSize && wire.Lane(l.source[6]) == lane {
			source, target = bytes.Clone(l.source), bytes.Clone(l.target)
		}
		l.mu.Unlock()
	}
	return source, target
}

const proofEnds = wire.PreambleSize + 64 // of what a source says

// clear demands that a lane has no TLS: behind preamble and proofs there are frames.
func (t *tap) clear(lane wire.Lane, first ...wire.Type) {
	t.r.t.Helper()
	_, b := t.beginning(lane)
	if len(b) < 64+wire.HeaderSize {
		t.r.t.Fatalf("%v: the agent said %d bytes", lane, len(b))
	}
	h, err := wire.ParseHeader(b[64:])
	ok := false
	for _, f := range first {
		ok = ok || h.Type == f
	}
	if err != nil || !ok {
		t.r.t.Errorf("%v begins with %+v: %v", lane, h, err)
	}
}

// refused says b to the agent and demands that it answers no more than a challenge.
func (t *tap) refused(what string, b []byte) {
	t.r.t.Helper()
	c, err := t.dial()
	if err != nil {
		t.r.t.Errorf("%s: %v", what, err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience)) // fails only when closed
	var got []byte
	if _, err = c.Write(b); err == nil {
		got, err = io.ReadAll(c)
	}
	if err != nil || len(got) != 32 {
		t.r.t.Errorf("%s: the agent answers %d bytes, %v", what, len(got), err)
	}
}

// TestCleartext moves a process without encryption, cuts all connections in the middle, and lets others try to get in.
func TestCleartext(t *testing.T) {
	r := newHosts(t, "checker")
	ag := r.agentWith(r.l.B, []string{"LAZYMIG_PARK=drain:" + gate}, "--allow-cleartext")
	man := newTap(r)
	ch := r.checker(r.l.A, 256, 4)
	g := r.begin(r.l.A, r.l.B, ch.proc.Pid, "--cleartext", "--to", man.addr)
	r.parked(ag) // it runs, and nothing but faults is served
	man.clear(wire.LaneFiles, wire.MsgFileAttach)
	man.clear(wire.LaneUrgent, wire.MsgPages, wire.MsgLayout)
	if control, _ := man.beginning(wire.LaneControl); len(control) < wire.PreambleSize+3 || !bytes.Equal(control[wire.PreambleSize:wire.PreambleSize+2], []byte{22, 3}) {
		t.Errorf("the control lane begins with % x, which is no TLS", control[:min(len(control), 40)])
	}

	whole, _ := man.beginning(wire.LaneUrgent)
	urgent := whole[:proofEnds]
	man.cut()
	r.sh(r.l.B, "touch "+gate)
	m := g.wait()
	if m.code != 0 || m.get("resumed") == nil {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	if again, _ := man.beginning(wire.LaneUrgent); bytes.Equal(again[:proofEnds], urgent) {
		t.Error("the urgent lane was not dialed again")
	}
	man.clear(wire.LaneUrgent, wire.MsgPages, wire.MsgLayout)
	man.clear(wire.LaneBulk, wire.MsgPages, wire.MsgLayout)

	guessed, crossed, foreign := bytes.Clone(urgent), bytes.Clone(urgent), bytes.Clone(urgent)
	guessed[proofEnds-1] ^= 1
	files, _ := man.beginning(wire.LaneFiles)
	copy(crossed[wire.PreambleSize:], files[wire.PreambleSize:proofEnds])
	binary.BigEndian.PutUint64(foreign[8:], 1)
	var wg sync.WaitGroup
	for what, b := range map[string][]byte{"a proof that was used": urgent, "a wrong proof": guessed, "another lane's proof": crossed, "a migration that is not there": foreign} {
		wg.Go(func() { man.refused(what, b) })
	}
	wg.Wait()
	if n := strings.Count(ag.log.String(), "clear lane refused"); n < 4 {
		t.Errorf("the agent tells of %d attempts", n)
	}
	r.goesOn(r.l.A, ch.status)
	ch.verdict(r.l.A, r.l.B, m.get("resumed").TargetPID)
	r.clean()
}

// TestCleartextRefused: an agent that was not told to do without encryption does not, and nothing has been touched then.
func TestCleartextRefused(t *testing.T) {
	r := newRig(t, "checker")
	ch := r.checker(r.l.A, 64, 1)
	m := r.try(r.l.A, r.l.B, ch.proc.Pid, "--cleartext")
	if m.get("frozen") != nil {
		t.Error("it was frozen")
	}
	r.runsOn(m, ch, 3, "--allow-cleartext")
}
