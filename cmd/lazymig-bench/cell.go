package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/lazymig/lazymig/lab"
)

// cell is one place of the matrix.
type cell struct {
	workload  string
	system    string
	mb        int
	reserveGB int
	rtt       time.Duration
	mbit      int // rate of the line; 0: as fast as it is
}

func (c cell) String() string {
	s := fmt.Sprintf("%s, %s, %d MB", c.system, c.workload, c.mb)
	if c.reserveGB > 0 {
		s += fmt.Sprintf(" of %d GB reserved", c.reserveGB)
	}
	return s + c.lineText()
}

func (c cell) lineText() (s string) {
	if c.rtt > 0 {
		s += fmt.Sprintf(", %v round trip", c.rtt)
	}
	if c.mbit > 0 {
		s += fmt.Sprintf(", %d Mbit/s", c.mbit)
	}
	return s
}

const (
	speedWindow = 100 * time.Millisecond // in which a speed is measured
	speedBefore = time.Second            // and that before the move
	speedStep   = 50 * time.Millisecond  // of curves
	speedFor    = 6 * time.Second        // curves end at the latest
	lookOn      = 1500 * time.Millisecond
)

// try measures a cell once. What goes wrong becomes the row's reason.
func (b *bench) try(ctx context.Context, c cell, run int) row {
	r := row{cell: c, run: run, values: map[string]float64{}}
	if err := b.try1(ctx, &r); err != nil {
		r.values, r.speed, r.faults = nil, nil, nil
		r.reason = err.Error()
	}
	return r
}

func (b *bench) try1(ctx context.Context, r *row) (err error) {
	c := &r.cell
	if c.system == lineSystem {
		return b.lineRow(ctx, r)
	}
	sys, ok := systemNamed(c.system)
	if !ok {
		return fmt.Errorf("system %q: there is none", c.system)
	}
	load, err := newLoad(c.workload)
	if err != nil {
		return err
	}
	if err := warmMemory(ctx, c.mb); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	l, err := lab.Up(ctx, lab.Options{Self: b.self, Share: b.share})
	if err != nil {
		return err
	}
	var s *sides
	defer func() {
		err = errors.Join(err, l.Down())
		if s != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s, err = newSides(l); err != nil {
		return err
	}
	p, err := load.start(ctx, b, l, c)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := narrow(ctx, l, c.mbit); err != nil {
		return err
	}
	if err := rest(ctx, speedBefore+speedWindow); err != nil {
		return err
	}
	if err := s.setApart(l.A.Pid); err != nil {
		return err
	}
	b.rtt, b.cell = c.rtt, *c
	memory := ownMemory(l.A.Path(fmt.Sprintf("/proc/%d", p.Pid)))
	s.begin()
	sent0, began := s.wire(), time.Now()
	o, err := sys.move(b, ctx, l, &process{mb: c.mb, pid: p.Pid})
	if err != nil {
		return err
	}
	took := time.Since(began)
	o.bytes = uint64(memory) // the same for all systems
	onB := l.B.Path(fmt.Sprintf("/proc/%d", o.pid))
	cpuB := ownTime(onB)
	a, bb := s.a.used(), s.b.used()
	sent := s.wire() - sent0
	treeMemory := ownMemory(onB)
	if err := rest(ctx, lookOn); err != nil {
		return err
	}
	n, err := load.end(ctx, l, o)
	if err != nil {
		return err
	}
	if o.end != nil {
		if err := o.end(); err != nil {
			return err
		}
	}
	pause, err := n.pause(o.frozen)
	if err != nil {
		return err
	}
	r.take(o, n, pause, began)
	r.values["took_s"] = took.Seconds()
	gb := float64(o.bytes) / 1e9
	r.values["cpu_source_s_gb"] = a.cpu / gb
	r.values["cpu_target_s_gb"] = max(bb.cpu-cpuB, 0) / gb
	r.values["sent_ratio"] = sent / float64(o.bytes)
	r.values["memory_source_mb"] = a.memory / 1e6
	r.values["memory_target_mb"] = (bb.memory - treeMemory) / 1e6
	return nil
}

// take works out what the move was like for the load.
func (r *row) take(o *outcome, n *noticed, pause gap, began time.Time) {
	v := r.values
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	v["pause_ms"] = ms(pause.to.Sub(pause.from))
	v["says_ms"] = zeroIsNone(o.downtimeMS)
	v["drain_ms"] = ms(o.drained.Sub(o.resumed))
	v["drain_mb_s"] = zeroIsNone(o.drainMBs())
	v["ahead_ms"] = zeroIsNone(o.aheadMS)
	v["faults"] = float64(n.faults.count())
	v["stall_ms"] = ms(n.stall)
	for _, q := range faultQuantiles {
		r.faults = append(r.faults, n.faults.quantile(q)/1000)
	}
	v["fault_p50_us"], v["fault_p99_us"] = n.faults.quantile(0.5)/1000, n.faults.quantile(0.99)/1000

	before := n.speed(began.Add(-speedBefore), speedBefore)
	v["ops_before"] = zeroIsNone(before)
	if before == 0 {
		return
	}
	for name, share := range map[string]float64{"to50_ms": 0.5, "to90_ms": 0.9, "to95_ms": 0.95} {
		v[name] = math.NaN()
		for t := time.Duration(0); t < patience; t += slot {
			at := pause.to.Add(t)
			if n.speed(at, speedWindow) >= share*before {
				v[name] = ms(t)
				break
			}
			if at.After(o.drained.Add(lookOn)) {
				break
			}
		}
	}
	until := min(pause.to.Sub(pause.from)+o.drained.Sub(pause.to)+lookOn/2, speedFor)
	for t := -500 * time.Millisecond; t < until; t += speedStep {
		r.speed = append(r.speed, n.speed(pause.from.Add(t), speedStep)/before)
	}
}

// speed is operations a second from a time on.
func (n *noticed) speed(from time.Time, d time.Duration) float64 {
	first := from.UnixNano() / int64(slot)
	var ops uint64
	for i := range int64(d / slot) {
		ops += n.rate[first+i]
	}
	return float64(ops) / d.Seconds()
}
