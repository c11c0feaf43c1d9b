package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/lazymig/lazymig/lab"
)

// redisLoad is Redis, and clients in host A that ask it as fast as it answers: first there, then on B as soon as it answers there. They notice the
// pause, and each answer on B that takes longer than 1 ms is their "fault".
type redisLoad struct{ clients *lab.Proc }

const (
	redisLoadArg = "redis-load"
	redisPort    = "6379"
	redisValue   = 1000 // bytes
	redisClients = 2
	redisSlow    = time.Millisecond
)

func (r *redisLoad) start(ctx context.Context, b *bench, l *lab.Lab, c *cell) (_ *lab.Proc, err error) {
	p, err := l.A.Spawn(lab.Spawn{Args: []string{
		"redis-server", "--save", "", "--appendonly", "no", "--port", redisPort, "--bind", "0.0.0.0",
		"--protected-mode", "no", "--enable-debug-command", "yes", "--dir", "/",
	}})
	if err != nil {
		return nil, err
	}
	keys := c.mb * 1_000_000 / 1130 // what a key of this size takes of memory
	r.clients, err = l.A.Spawn(lab.Spawn{Args: []string{b.self, redisLoadArg, l.A.Addr, l.B.Addr, strconv.Itoa(keys), readyFile, resultFile}})
	if err == nil {
		if err = waitForFile(ctx, l.A.Path(readyFile), "ready\n", r.clients.Done()); err != nil {
			r.clients.Close()
		}
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("start Redis and its clients: %w", err)
	}
	return p, nil
}

func (r *redisLoad) end(ctx context.Context, l *lab.Lab, o *outcome) (_ *noticed, err error) {
	defer func() { err = errors.Join(err, r.clients.Close()) }()
	if err := r.clients.Signal(syscall.SIGTERM); err != nil {
		return nil, fmt.Errorf("end the clients of Redis: %w", err)
	}
	if err := waitForFile(ctx, l.A.Path(resultFile), "ok\n", nil); err != nil {
		return nil, fmt.Errorf("result of the clients of Redis: %w", err)
	}
	text, err := os.ReadFile(l.A.Path(resultFile))
	if err != nil {
		return nil, fmt.Errorf("result of the clients of Redis: %w", err)
	}
	n := &noticed{}
	if err := n.parse(text); err != nil {
		return nil, err
	}
	return n, sh(ctx, l.B, "kill -TERM "+strconv.Itoa(o.pid))
}

// asking is the process with the clients.
type asking struct {
	hosts [2]string
	keys  int
	onB   atomic.Bool
	wrong atomic.Bool

	mu       sync.Mutex
	faults   histogram
	stall    time.Duration
	rate     map[int64]uint64
	gaps     []gap
	answered time.Time // the last one
}

// redisLoadMain is that process: HOST_A HOST_B KEYS READY RESULT.
func redisLoadMain(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a := &asking{hosts: [2]string{args[0], args[1]}, faults: histogram{}, rate: map[int64]uint64{}}
	var err error
	if a.keys, err = strconv.Atoi(args[2]); err != nil {
		return err
	}
	if err := a.fill(ctx); err != nil {
		return err
	}
	if err := os.WriteFile(args[3], []byte("ready\n"), 0o644); err != nil {
		return err
	}
	a.answered = time.Now()
	var wg sync.WaitGroup
	for n := range redisClients {
		wg.Go(func() { a.client(ctx, n) })
	}
	wg.Go(func() { a.lookForB(ctx) })
	wg.Wait()
	return a.write(args[4])
}

func (a *asking) dial(host string) (redis.Conn, error) {
	return redis.Dial("tcp", host+":"+redisPort, redis.DialConnectTimeout(time.Second))
}

func (a *asking) fill(ctx context.Context) error {
	for {
		c, err := a.dial(a.hosts[0])
		if err == nil {
			_, err = c.Do("DEBUG", "POPULATE", a.keys, "key", redisValue)
			c.Close()
			return err
		}
		if rest(ctx, 20*time.Millisecond) != nil {
			return errors.Join(err, ctx.Err())
		}
	}
}

// lookForB tells when Redis answers on B. Nothing listens there before.
func (a *asking) lookForB(ctx context.Context) {
	for rest(ctx, time.Millisecond) == nil {
		c, err := a.dial(a.hosts[1])
		if err != nil {
			continue
		}
		_, err = c.Do("PING")
		c.Close()
		if err == nil {
			a.onB.Store(true)
			return
		}
	}
}

// client asks for one key after the other; what the frozen Redis on A owes it is dropped when B answers.
func (a *asking) client(ctx context.Context, n int) {
	r := uint64(n + 1)
	for ctx.Err() == nil {
		on := a.onB.Load()
		host := a.hosts[0]
		if on {
			host = a.hosts[1]
		}
		c, err := a.dial(host)
		if err != nil {
			_ = rest(ctx, time.Millisecond)
			continue
		}
		moved := make(chan struct{})
		left := make(chan struct{})
		go func() { // until the connection is left
			defer close(left)
			for rest(ctx, time.Millisecond) == nil && a.onB.Load() == on {
				select {
				case <-moved:
					return
				default:
				}
			}
			_ = c.Close() // wakes a reader
		}()
		for err == nil && ctx.Err() == nil && a.onB.Load() == on {
			err = a.ask(c, n, &r, on)
		}
		close(moved)
		_ = c.Close() // maybe once more
		<-left
	}
}

// ask does one request in ten as a SET.
func (a *asking) ask(c redis.Conn, n int, r *uint64, moved bool) (err error) {
	*r = *r*6364136223846793005 + 1442695040888963407
	k := int(*r>>20) % a.keys
	began := time.Now()
	if *r>>60 == 0 {
		_, err = c.Do("SET", fmt.Sprintf("client:%d:%d", n, k%1000), k)
	} else {
		var v []byte
		want := fmt.Appendf(nil, "value:%d", k)
		if v, err = redis.Bytes(c.Do("GET", fmt.Sprintf("key:%d", k))); err == nil && (len(v) != redisValue || !bytes.HasPrefix(v, want)) {
			a.wrong.Store(true)
		}
		if errors.Is(err, redis.ErrNil) {
			a.wrong.Store(true)
		}
	}
	if err != nil {
		return err
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rate[now.UnixNano()/int64(slot)]++
	if d := now.Sub(began); moved && d > redisSlow {
		a.faults[binOf(uint64(d))]++
		a.stall += d
	}
	if now.Sub(a.answered) > redisSlow {
		a.gaps = append(a.gaps, gap{a.answered, now})
	}
	a.answered = now
	return nil
}

// write says it as load.c does.
func (a *asking) write(path string) error {
	var b bytes.Buffer
	for _, g := range a.gaps {
		fmt.Fprintf(&b, "gap %d %d\n", g.to.UnixMicro(), g.to.Sub(g.from).Microseconds())
	}
	for bin, n := range a.faults {
		fmt.Fprintf(&b, "fault %d %d\n", bin, n)
	}
	fmt.Fprintf(&b, "stall %d\n", a.stall.Nanoseconds())
	for s, n := range a.rate {
		fmt.Fprintf(&b, "rate %d %d\n", s, n)
	}
	last := "ok\n"
	if a.wrong.Load() {
		last = "bad\n"
	}
	b.WriteString(last)
	return os.WriteFile(path, b.Bytes(), 0o644)
}
