package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/lazymig/lazymig/lab"
)

// The kernel that this was made on has no netem: a line with a round trip is a process on one of the hosts, to which the near end connects as if it
// were the far one. It holds what it reads back for half a round trip each way, however much that is, so the line is long but not narrow.

const (
	delayArg  = "delay"
	delayPort = "7071"
)

// longLine starts such a line on a host, from an address of its own to the far end's.
func (b *bench) longLine(ctx context.Context, h *lab.Host, listen, to string, rtt time.Duration) (stop func(), err error) {
	cmd := h.Command(ctx, b.self, delayArg, listen, to, rtt.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the long line: %w", err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
	if err := awaitWord(out, "listens"); err != nil {
		stop()
		return nil, fmt.Errorf("start the long line: %w", err)
	}
	return stop, nil
}

// awaitWord reads a line that says so.
func awaitWord(from io.Reader, word string) error {
	line, err := bufio.NewReader(from).ReadString('\n')
	if err != nil || !strings.Contains(line, word) {
		return fmt.Errorf("it says %q, not %q: %w", line, word, errors.Join(err, errUnexpected))
	}
	return nil
}

var errUnexpected = errors.New("it is not ready")

// delay is that process.
func delay(args []string) error {
	if len(args) != 3 {
		return errors.New("usage: delay LISTEN TO ROUNDTRIP")
	}
	rtt, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Println("listens")
	for {
		near, err := ln.Accept()
		if err != nil {
			return err
		}
		far, err := net.Dial("tcp", args[1])
		if err != nil {
			_ = near.Close() // whoever it is sees that nobody is there
			continue
		}
		go pump(near, far, rtt/2)
		go pump(far, near, rtt/2)
	}
}

// piece is what was read at a time.
type piece struct {
	b   []byte
	due time.Time
}

// pump carries one direction, each piece as long after it was read as every other.
func pump(from, to net.Conn, by time.Duration) {
	line := make(chan piece, 4096) // 256 MB
	go func() {
		defer to.Close()
		for p := range line {
			if wait := time.Until(p.due); wait > 0 {
				<-time.After(wait)
			}
			if _, err := to.Write(p.b); err != nil {
				_ = from.Close() // ends the reader
				for range line { // which may wait for room
				}
				return
			}
		}
	}()
	defer close(line)
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			line <- piece{b[:n], time.Now().Add(by)}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				fmt.Fprintf(os.Stderr, "long line: %v\n", err)
			}
			return
		}
	}
}
