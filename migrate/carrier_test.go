package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/wire"
)

// dieEnv tells a carrier of these tests where it kills itself: STEP:TIMES.
const dieEnv = "LAZYMIG_TEST_CARRIER_DIES"

// TestMain is a carrier, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == CarrierArg {
		stepHook = dying()
		if err := CarrierMain(slog.Default()); err != nil {
			fmt.Fprintln(os.Stderr, "carrier:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dying kills this process with SIGKILL at a step.
func dying() func(string) {
	at, times, ok := strings.Cut(os.Getenv(dieEnv), ":")
	if !ok {
		return nil
	}
	left, _ := strconv.Atoi(times)
	var mu sync.Mutex
	return func(step string) {
		mu.Lock()
		defer mu.Unlock()
		if step != at {
			return
		}
		if left--; left <= 0 {
			_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGKILL)
			select {}
		}
	}
}

// carried is a tree's end of streams with a carrier between it and a relay, which stands for the source's. The carrier may be killed at any time.
type carried struct {
	t      *testing.T
	link   *carrierLink
	source *relay
	ends   map[string]*os.File // of the tree, by key

	mu    sync.Mutex
	kept  map[uint32]*os.File // as the guardian has it
	procs []*parts.Process
	die   string // of the carriers that are started
	over  bool
	wg    sync.WaitGroup
	cur   *session
	ways  carrierWays
}

func carry(t *testing.T, die string, source *relay, slots ...stdioSlot) *carried {
	t.Helper()
	kerneltest.Leaks(t)
	c := &carried{t: t, source: source, ends: map[string]*os.File{}, kept: map[uint32]*os.File{}, die: die}
	c.ways = carrierWays{dir: t.TempDir(), start: c.start, drop: c.drop, kept: c.keeps}
	ways := c.ways
	ways.keep = func(id uint32, f *os.File) error {
		d, err := dupFile(f)
		c.kept[id] = d
		return err
	}
	l, err := startCarrier(ways, carrierConfig{Slots: slots}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.link = l
	for _, i := range l.inherits {
		d, err := dupFile(i.File)
		if err != nil {
			t.Fatal(err)
		}
		c.ends[i.Key] = d
	}
	l.restored()
	l.stay()
	l.start()
	source.start()
	c.wg.Go(c.connect)
	t.Cleanup(func() {
		c.mu.Lock()
		c.over = true
		if c.cur != nil {
			c.cur.c.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
		c.link.close()
		for _, p := range c.procs {
			if err := endCarrier(p); err != nil {
				t.Error(err)
			}
		}
		source.close()
		for _, f := range c.kept {
			f.Close()
		}
		for _, f := range c.ends {
			f.Close()
		}
	})
	return c
}

func (c *carried) start(s parts.Spec) (*parts.Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	die := c.die
	if die == "found:7" { // which is in each second one that follows
		if die = "before pass:7"; len(c.procs)%2 == 1 {
			die = "found:2"
		}
	}
	c.t.Setenv(dieEnv, die)
	p, err := parts.Here{}.Start(s)
	if err == nil {
		c.procs = append(c.procs, p)
	}
	return p, err
}

func (c *carried) drop(which []uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range which {
		if f := c.kept[n]; f != nil {
			f.Close()
			delete(c.kept, n)
		}
	}
}

func (c *carried) keeps(context.Context) (map[uint32]*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := map[uint32]*os.File{}
	var errs error
	for id, f := range c.kept {
		d, err := dupFile(f)
		errs = errors.Join(errs, err)
		kept[id] = d
	}
	return kept, errs
}

// connect makes connections between the two sides, one after the other.
func (c *carried) connect() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Error(err)
		return
	}
	defer l.Close()
	for {
		ca, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			c.t.Error(err)
			return
		}
		cb, err := l.Accept()
		if err != nil {
			c.t.Error(err)
			return
		}
		c.mu.Lock()
		relay, over := c.link.relay, c.over
		a, b := newSession(wire.NewConn(ca), c.source), newSession(wire.NewConn(cb), relay)
		c.cur = b
		c.mu.Unlock()
		c.source.attach(a)
		relay.attach(b)
		if over {
			b.c.Close()
		}
		for range b.frames {
		}
		c.source.attach(nil)
		relay.attach(nil)
		a.close()
		b.close()
		if over {
			return
		}
	}
}

// started is how many carriers there were.
func (c *carried) started() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.procs)
}

// TestCarrierDies kills the carrier at each step that it takes with a byte, in both directions of a pipe and of a socket, again and again: each byte comes once and in order,
// and so do the ends.
func TestCarrierDies(t *testing.T) {
	for _, step := range []string{"before splice", "after splice", "in between", "before ack", "after ack", "before queue", "after queue", "before pass", "after pass", "found", "anywhere"} {
		t.Run(step, func(t *testing.T) { carrierDies(t, step) })
	}
}

func carrierDies(t *testing.T, step string) {
	source := newRelay()
	die := step + ":7" // each carrier comes a bit further
	gate := make(chan struct{})
	switch step {
	case "before ack", "after ack": // of which there may be one a stream
		die = step + ":2"
		close(gate)
	case "anywhere":
		die = ""
	default:
		close(gate)
	}
	from, e := pipe(t, true) // what the tree reads
	source.addOut(0, e)
	to, e := pipe(t, false) // what the tree writes
	source.addIn(1, e)
	sock, in, out := pair(t)
	source.addIn(2, in)
	source.addOut(2, out)
	c := carry(t, die, source,
		stdioSlot{Key: "pipe:[1]", To: StdioRelay, Stream: 0, Read: true},
		stdioSlot{Key: "pipe:[2]", To: StdioRelay, Stream: 1, Write: true},
		stdioSlot{Key: "socket:[3]", To: StdioRelay, Stream: 2, Read: true, Write: true})
	tsock, err := net.FileConn(c.ends["socket:[3]"])
	if err != nil {
		t.Fatal(err)
	}
	defer tsock.Close()
	c.ends["socket:[3]"].Close()

	want := numbers(400_000)
	var wg sync.WaitGroup
	write := func(f io.Writer, end func() error) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, 2))
			for b := want; len(b) > 0; {
				n := min(len(b), 1+rnd.IntN(9000))
				if _, err := f.Write(b[:n]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				b = b[n:]
			}
			if err := end(); err != nil {
				t.Errorf("end: %v", err)
			}
		})
	}
	done := make(chan struct{})
	read := func(what string, f io.Reader) {
		wg.Go(func() {
			<-gate
			got, err := io.ReadAll(f)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d came, or others than were sent: %v", what, len(got), len(want), err)
			}
		})
	}
	read("input", c.ends["pipe:[1]"])
	read("output", to)
	read("socket's input", tsock)
	read("socket's output", sock)
	write(from, from.Close)
	write(c.ends["pipe:[2]"], c.ends["pipe:[2]"].Close)
	write(sock, sock.CloseWrite)
	write(tsock, tsock.(*net.UnixConn).CloseWrite)
	go func() {
		wg.Wait()
		close(done)
	}()
	rnd := rand.New(rand.NewPCG(3, uint64(os.Getpid())))
	late := time.After(2 * time.Minute)
	for kills := 0; ; {
		var again <-chan time.Time
		if step == "anywhere" && kills < 40 {
			again = time.After(time.Duration(rnd.IntN(20_000)) * time.Microsecond)
		}
		select {
		case <-done:
			if c.started() < 2 {
				t.Errorf("no carrier was killed at %q", step)
			}
			t.Logf("%d carriers", c.started())
			return
		case <-again:
			if kills++; kills == 5 {
				close(gate) // until then none gets all of it
			}
			if kills%3 == 0 {
				c.nextAgent(kills%2 == 0)
				continue
			}
			if p := c.link.process(); p != nil {
				if err := p.Kill(); err != nil {
					t.Error(err)
				}
			}
		case <-late:
			t.Fatal("not all came")
		}
	}
}

// nextAgent takes the carrier over as an agent does that follows another, which may have died with its carrier.
func (c *carried) nextAgent(both bool) {
	c.link.leave()
	if both {
		c.mu.Lock()
		last := c.procs[len(c.procs)-1]
		c.mu.Unlock()
		if err := endCarrier(last); err != nil {
			c.t.Error(err)
		}
	}
	l, err := findCarrier(c.ways, slog.New(slog.DiscardHandler))
	if err != nil {
		c.t.Fatalf("the next agent finds no carrier: %v", err)
	}
	l.start()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.link = l
	c.cur.c.Close()
}
