package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/lazymig/lazymig/keys"
)

// `lazymig-bench -quick` is a guard against regressions: ratios that hold on a noisy machine, within three minutes. It fails only where
// something is far from what it should be; for figures that are worth comparing there is `make bench`.
const (
	quickSizes   = "64,512"
	quickSystems = "lazymig,stock"
	quickRuns    = 2
	quickTime    = 3 * time.Minute
)

// ratio is one that is judged: it should be at most (or, where more is better, at least) aim, and fails beyond the bound.
type ratio struct {
	what       string
	value      float64
	aim, bound float64
	more       bool // is better
}

func (r ratio) String() string {
	verdict := "reached"
	switch {
	case r.beyond(r.bound):
		verdict = "FAR OUTSIDE"
	case r.beyond(r.aim):
		verdict = "not reached"
	}
	return fmt.Sprintf("%-52s %7.2f   aim %5.2f: %s", r.what, r.value, r.aim, verdict)
}

// beyond is also true where nothing was measured.
func (r ratio) beyond(limit float64) bool {
	if r.more {
		return !(r.value >= limit)
	}
	return !(r.value <= limit)
}

var errFarOutside = errors.New("a ratio is far outside")

// quick judges what has been measured. trip is an empty round trip, µs.
func (r *report) quick(w io.Writer, trip float64) error {
	least, most := r.sizes[0], r.sizes[len(r.sizes)-1]
	pause, p50, p99 := figures[0].of, faultAt(0.5), faultAt(0.99)
	var err error
	for _, q := range []ratio{
		{what: fmt.Sprintf("pause at %d MB / at %d MB", most, least), value: r.median("lazymig", most, pause) / r.median("lazymig", least, pause), aim: 1.3, bound: 4},
		{what: fmt.Sprintf("pause / stock's at %d MB", most), value: r.ratio("lazymig", most, pause), aim: 0.7, bound: 2},
		{what: fmt.Sprintf("drain in MB/s / stock's at %d MB", most), value: r.ratio("lazymig", most, (*outcome).drainMBs), aim: 3, bound: 0.4, more: true},
		{what: fmt.Sprintf("fault p50 / stock's at %d MB", most), value: r.ratio("lazymig", most, p50), aim: 1, bound: 4},
		{what: fmt.Sprintf("fault p99 / stock's at %d MB", most), value: r.ratio("lazymig", most, p99), aim: 0.33, bound: 3},
		{what: fmt.Sprintf("fault p50 / an empty round trip (%.0f µs)", trip), value: r.median("lazymig", most, p50) / trip, aim: (trip + 50) / trip, bound: (trip + 2000) / trip},
	} {
		fmt.Fprintln(w, q)
		if q.beyond(q.bound) {
			err = errFarOutside
		}
	}
	return err
}

// emptyTrip is the median of round trips, 16 bytes for 4 KB, over TLS between two threads of this machine, in µs.
func emptyTrip(ctx context.Context, dir, name string) (_ float64, err error) {
	const trips = 2000
	defer func() {
		if err != nil {
			err = fmt.Errorf("measure round trips: %w", err)
		}
	}()
	k, err := keys.Load(dir)
	if err != nil {
		return 0, err
	}
	cfg, err := k.Client(name)
	if err != nil {
		return 0, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	answered := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			answered <- err
			return
		}
		defer c.Close()
		t := tls.Server(c, k.Server())
		var b [4096]byte
		for range trips {
			if _, err = io.ReadFull(t, b[:16]); err == nil {
				_, err = t.Write(b[:])
			}
			if err != nil {
				break
			}
		}
		answered <- err
	}()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	t := tls.Client(nc, cfg)
	var b [4096]byte
	var us []float64
	for range trips {
		began := time.Now()
		if _, err = t.Write(b[:16]); err == nil {
			_, err = io.ReadFull(t, b[:])
		}
		if err != nil {
			break
		}
		us = append(us, float64(time.Since(began).Nanoseconds())/1000)
	}
	if err != nil {
		nc.Close() // the other side may wait
	}
	if err = errors.Join(err, <-answered); err != nil {
		return 0, err
	}
	sortFloats(us)
	return quantile(us, 0.5), nil
}
