package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"
)

// tool is what the demo runs inside a host; the end to end tests do, too.
func tool(args []string) error {
	switch {
	case (args[0] == "fill" || args[0] == "digest") && len(args) == 3:
		keys, err := strconv.Atoi(args[2])
		if err != nil {
			return fmt.Errorf("number of keys: %w", err)
		}
		if args[0] == "fill" {
			return fill(args[1], keys)
		}
		return digest(args[1], keys)
	case args[0] == "client" && len(args) == 3:
		return client(args[1:])
	case args[0] == "stop" && len(args) == 2:
		return stop(args[1])
	}
	return fmt.Errorf("unknown tool %q", args)
}

func dial(host string) (redis.Conn, error) {
	return redis.Dial("tcp", host+":"+redisPort, redis.DialConnectTimeout(time.Second), redis.DialReadTimeout(patience), redis.DialWriteTimeout(patience))
}

// fill waits for the server and makes the keys.
func fill(host string, keys int) error {
	deadline := time.Now().Add(patience)
	for {
		c, err := dial(host)
		if err == nil {
			_, err = c.Do("DEBUG", "POPULATE", keys, "key", valueSize)
			c.Close()
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// digest prints a hash over DEBUG DIGEST-VALUE of all keys that fill made.
func digest(host string, keys int) error {
	c, err := dial(host)
	if err != nil {
		return err
	}
	defer c.Close()
	const batch = 1000
	sum := sha256.New()
	for i := 0; i < keys; i += batch {
		args := []any{"DIGEST-VALUE"}
		for k := i; k < min(i+batch, keys); k++ {
			args = append(args, fmt.Sprintf("key:%d", k))
		}
		got, err := redis.Strings(c.Do("DEBUG", args...))
		if err != nil {
			return fmt.Errorf("digest: %w", err)
		}
		for _, d := range got {
			if strings.Trim(d, "0") == "" {
				return errors.New("digest: a key is missing")
			}
			sum.Write([]byte(d))
		}
	}
	fmt.Println(hex.EncodeToString(sum.Sum(nil))[:40])
	return nil
}

func stop(host string) error {
	c, err := dial(host)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Do("SHUTDOWN", "NOSAVE"); err != nil && !strings.Contains(err.Error(), "EOF") && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("stop redis-server: %w", err)
	}
	return nil
}

// clientReport is what the client prints at its end.
type clientReport struct {
	Acked, OnB  int
	Lost, Wrong int
	PauseMS     float64
}

const clientKeys = 1000

// writer is the client: it writes ever higher numbers to its own keys, and its journal holds what was acknowledged.
type writer struct {
	hosts   []string
	at      int // index of the host in use
	c       redis.Conn
	acked   [clientKeys]int // 0: none
	doubt   [clientKeys]int // sent, not acknowledged: may or may not be there
	report  clientReport
	lastAck time.Time
}

// client writes until SIGTERM, then checks its journal.
func client(hosts []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	w := &writer{hosts: hosts, lastAck: time.Now()}
	for n := 1; ctx.Err() == nil; n++ {
		if err := w.write(ctx, n); err != nil {
			return err
		}
	}
	if err := w.check(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(w.report)
}

// write sets one key; it tries both hosts until one acknowledges.
func (w *writer) write(ctx context.Context, n int) error {
	k := n % clientKeys
	deadline := time.Now().Add(patience)
	for ctx.Err() == nil {
		if w.c == nil {
			c, err := redis.Dial("tcp", w.hosts[w.at]+":"+redisPort, redis.DialConnectTimeout(50*time.Millisecond),
				redis.DialReadTimeout(time.Second), redis.DialWriteTimeout(time.Second))
			if err != nil {
				if time.Now().After(deadline) {
					return fmt.Errorf("no host answers: %w", err)
				}
				w.at = 1 - w.at
				time.Sleep(time.Millisecond) // a refused connection comes back at once: do not spin
				continue
			}
			w.c = c
		}
		w.doubt[k] = n
		if _, err := w.c.Do("SET", fmt.Sprintf("client:%d", k), n); err != nil {
			w.c.Close()
			w.c = nil
			w.at = 1 - w.at
			continue
		}
		now := time.Now()
		w.report.PauseMS = max(w.report.PauseMS, float64(now.Sub(w.lastAck).Microseconds())/1000)
		w.lastAck = now
		w.acked[k] = n
		w.report.Acked++
		if w.at == 1 {
			w.report.OnB++
		}
		return nil
	}
	return nil
}

// check compares every key with the journal.
func (w *writer) check() error {
	if w.c != nil {
		w.c.Close()
	}
	c, err := dial(w.hosts[1])
	if err != nil {
		return err
	}
	defer c.Close()
	for k := range w.acked {
		if w.acked[k] == 0 {
			continue
		}
		got, err := redis.Int(c.Do("GET", fmt.Sprintf("client:%d", k)))
		switch {
		case errors.Is(err, redis.ErrNil):
			w.report.Lost++
		case err != nil:
			return fmt.Errorf("read key %d: %w", k, err)
		case got < w.acked[k]:
			w.report.Lost++
		case got != w.acked[k] && got != w.doubt[k]:
			w.report.Wrong++
		}
	}
	return nil
}
