package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// witness stands outside both hosts, in a network namespace of its own with a link to each that no fault of a test touches. A checker says each
// step to it, and goes on when it has heard so. So it knows in which order steps were made, and on which host.
type witness struct {
	addr *net.UDPAddr
	conn *net.UDPConn
	done chan struct{}

	mu    sync.Mutex
	step  uint64 // newest
	at    time.Time
	pause time.Duration // longest between two steps
	lines uint64        // what the last word said
	end   bool          // there was a last word
	on    string        // host that made it
	next  string        // the other host, if it may make steps from now on: once
	steps map[string]int
	bad   error // the first step that must not be
}

const witnessIP = "10.78.0.1"

// newWitness makes one; closed at the end of the test.
func newWitness(r *rig) *witness {
	r.t.Helper()
	w := &witness{next: onB, steps: map[string]int{}, done: make(chan struct{})}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine, the namespace with its last socket
		made <- w.open(r)
	}()
	if err := <-made; err != nil {
		r.t.Fatalf("make witness: %v", err)
	}
	go w.listen()
	r.t.Cleanup(func() {
		w.conn.Close()
		<-w.done
	})
	return w
}

// open makes namespace, links and socket, on the thread of its caller.
func (w *witness) open(r *rig) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	run := func(args ...string) error {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("run %v: %w: %s", args, err, out)
		}
		return nil
	}
	steps := [][]string{{"ip", "link", "set", "lo", "up"}, {"ip", "addr", "add", witnessIP + "/32", "dev", "lo"}}
	for i, pid := range []int{r.l.A.Pid, r.l.B.Pid} {
		ns := fmt.Sprintf("/proc/%d/ns/net", pid)
		nic, here, there := fmt.Sprint("w", i), fmt.Sprintf("10.78.%d.1", i+1), fmt.Sprintf("10.78.%d.2", i+1)
		in := []string{"nsenter", "--net=" + ns, "ip"}
		steps = append(
			steps,
			[]string{"ip", "link", "add", nic, "type", "veth", "peer", "name", "witness", "netns", ns},
			[]string{"ip", "addr", "add", here + "/24", "dev", nic},
			[]string{"ip", "link", "set", nic, "up"},
			append(in, "addr", "add", there+"/24", "dev", "witness"),
			append(in, "link", "set", "witness", "up"),
			append(in, "route", "add", witnessIP, "via", here),
		)
	}
	for _, s := range steps {
		if err := run(s...); err != nil {
			return err
		}
	}
	var err error
	if w.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(witnessIP)}); err != nil {
		return err
	}
	w.addr = w.conn.LocalAddr().(*net.UDPAddr)
	return nil
}

func (w *witness) listen() {
	defer close(w.done)
	b := make([]byte, 512)
	for {
		n, from, err := w.conn.ReadFromUDP(b)
		if err != nil {
			return
		}
		if n < 16 {
			continue
		}
		what, _, _ := bytes.Cut(b[16:n], []byte{0})
		w.hear(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), string(what), from.IP.To4())
		_, _ = w.conn.WriteToUDP(b[:8], from) // lost: it is said again
	}
}

// allow says which host may go on from the other's steps; none if it is empty.
func (w *witness) allow(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next = host
}

// hear takes one step: the same again (its answer was lost), or the next. Never one from A when B has run, unless that was allowed.
func (w *witness) hear(step, wrong uint64, what string, from net.IP) {
	on := map[byte]string{1: "A", 2: "B"}[from[2]]
	const last = 1 << 62 // with it comes the number of lines (testdata/steps.c)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps[on]++
	if step&last != 0 {
		w.lines, w.end = step&^last, true
		step = w.step
	}
	switch {
	case w.bad != nil:
	case wrong != 0:
		w.bad = fmt.Errorf("at step %d %d pages or files were wrong on %s: %s", step, wrong, on, what)
	case w.on != "" && on != w.on && on != w.next:
		w.bad = fmt.Errorf("two runners: step %d on %s after step %d on %s", step, on, w.step, w.on)
	case step != w.step && step != w.step+1:
		w.bad = fmt.Errorf("step %d on %s follows step %d on %s", step, on, w.step, w.on)
	}
	if w.on != "" && on != w.on {
		w.next = ""
	}
	now := time.Now()
	if w.step != 0 {
		w.pause = max(w.pause, now.Sub(w.at))
	}
	w.step, w.on, w.at = step, on, now
}

// longest is the longest pause between two steps.
func (w *witness) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pause
}

// lastWord is how many lines the program has written, once it has ended.
func (w *witness) lastWord() (lines uint64, said bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines, w.end
}

// last is the newest step, and where it was made.
func (w *witness) last() (step uint64, on string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.step, w.on
}

// broken says that a step was made that must not be: nothing that the program does from then on says more.
func (w *witness) broken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bad != nil
}

// verdict fails the test if a step was made that must not be.
func (w *witness) verdict(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.bad != nil {
		t.Errorf("witness: %v", w.bad)
	}
	if w.step == 0 {
		t.Error("the witness heard nothing")
	}
}
