package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lab"
)

// What the line gives without any of what is compared: round trips of 16 bytes for 4 KB, and a copy, both over TLS 1.3 between the two hosts. The
// far end listens on B and asks, the near one dials from A and answers, as in a migration.

const (
	lineFarArg  = "line-far"  // KEYS LISTEN CONNECTIONS: prints its result
	lineNearArg = "line-near" // KEYS ADDRESS NAME CONNECTIONS MB
	linePort    = "7072"
	lineTrips   = 2000
	lineTime    = 10 * time.Second // for round trips, however many
	lineConns   = 2
)

// lineResult is what the far end prints.
type lineResult struct {
	TripsUS []float64 // sorted
	Bytes   uint64
	Seconds float64
}

func (r lineResult) mbs() float64 { return float64(r.Bytes) / 1e6 / r.Seconds }

// measureLine takes a line's measure in a lab.
func (b *bench) measureLine(ctx context.Context, l *lab.Lab, rtt time.Duration, conns, mb int) (r lineResult, err error) {
	at := l.B.Addr + ":" + linePort
	far := l.B.Command(ctx, b.self, lineFarArg, b.keys, at, strconv.Itoa(conns))
	out, err := far.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := far.Start(); err != nil {
		return r, fmt.Errorf("measure the line: %w", err)
	}
	defer func() {
		if err != nil {
			_ = far.Process.Kill()
			_ = far.Wait() // the error is told
		}
	}()
	dec := json.NewDecoder(out)
	var ready string
	if err := dec.Decode(&ready); err != nil {
		return r, fmt.Errorf("measure the line: %w", err)
	}
	if rtt > 0 {
		end, err := b.longLine(ctx, l.A, l.A.Addr+":"+delayPort, at, rtt)
		if err != nil {
			return r, err
		}
		defer end()
		at = l.A.Addr + ":" + delayPort
	}
	near := l.A.Command(ctx, b.self, lineNearArg, b.keys, at, l.B.Addr, strconv.Itoa(conns), strconv.Itoa(mb))
	if said, err := near.CombinedOutput(); err != nil {
		return r, fmt.Errorf("measure the line: near end: %w\n%s", err, said)
	}
	if err := dec.Decode(&r); err != nil {
		return r, fmt.Errorf("measure the line: %w", err)
	}
	var ee *exec.ExitError
	if err := far.Wait(); err != nil && !errors.As(err, &ee) {
		return r, fmt.Errorf("measure the line: %w", err)
	}
	return r, nil
}

func lineFar(args []string) error {
	k, err := keys.Load(args[0])
	if err != nil {
		return err
	}
	conns, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println(`"ready"`)
	t, err := accept(l, k)
	if err != nil {
		return err
	}
	defer t.Close()
	var r lineResult
	var b [4096]byte
	for end := time.Now().Add(lineTime); len(r.TripsUS) < lineTrips && time.Now().Before(end); {
		began := time.Now()
		if _, err := t.Write(b[:16]); err != nil {
			return err
		}
		if _, err := io.ReadFull(t, b[:]); err != nil {
			return err
		}
		r.TripsUS = append(r.TripsUS, float64(time.Since(began).Nanoseconds())/1000)
	}
	if err := t.CloseWrite(); err != nil { // the other side goes on to the copy
		return err
	}
	sortFloats(r.TripsUS)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var began time.Time
	var errs error
	for range conns {
		c, err := accept(l, k)
		if err != nil {
			return err
		}
		if began.IsZero() {
			began = time.Now()
		}
		wg.Go(func() {
			defer c.Close()
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, c, make([]byte, 1<<20))
			mu.Lock()
			r.Bytes += uint64(n)
			errs = errors.Join(errs, err)
			mu.Unlock()
		})
	}
	wg.Wait()
	r.Seconds = time.Since(began).Seconds()
	text, err := json.Marshal(r)
	if err == nil {
		_, err = fmt.Printf("%s\n", text)
	}
	return errors.Join(errs, err)
}

func accept(l net.Listener, k *keys.Keys) (*tls.Conn, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return serverEnd(c, k)
}

func lineNear(args []string) error {
	cfg, err := clientOf(args[0], args[2])
	if err != nil {
		return err
	}
	conns, err1 := strconv.Atoi(args[3])
	mb, err2 := strconv.Atoi(args[4])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	t, err := tls.Dial("tcp", args[1], cfg)
	if err != nil {
		return err
	}
	defer t.Close()
	var b [4096]byte
	for {
		if _, err := io.ReadFull(t, b[:16]); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if _, err := t.Write(b[:]); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, conns)
	for i := range conns {
		c, err := tls.Dial("tcp", args[1], cfg)
		if err != nil {
			return err
		}
		wg.Go(func() {
			piece := make([]byte, 1<<20)
			for n := 0; n < mb/conns && errs[i] == nil; n++ {
				_, errs[i] = c.Write(piece)
			}
			errs[i] = errors.Join(errs[i], c.Close())
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// lineSystem is the line as a row of the matrix: no move, but what one could reach there.
const (
	lineSystem   = "tls"
	lineWorkload = "line"
	lineMB       = 1024
)

func (b *bench) lineRow(ctx context.Context, r *row) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, err := lab.Up(ctx, lab.Options{Self: b.self, Share: b.share})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	if err := narrow(ctx, l, r.mbit); err != nil {
		return err
	}
	got, err := b.measureLine(ctx, l, r.rtt, lineConns, r.mb)
	if err != nil {
		return err
	}
	r.values["drain_mb_s"] = got.mbs()
	r.values["fault_p50_us"], r.values["fault_p99_us"] = quantile(got.TripsUS, 0.5), quantile(got.TripsUS, 0.99)
	return nil
}

// narrow gives the line a rate, in Mbit/s.
func narrow(ctx context.Context, l *lab.Lab, mbit int) error {
	if mbit == 0 {
		return nil
	}
	for _, h := range []*lab.Host{l.A, l.B} {
		if err := sh(ctx, h, fmt.Sprintf("tc qdisc add dev eth0 root tbf rate %dmbit burst 512k latency 50ms", mbit)); err != nil {
			return err
		}
	}
	return nil
}
