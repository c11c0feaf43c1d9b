package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/migrate"
)

const agentPort = "7070"

func (b *bench) moveByLazymig(ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
	return b.migrate(ctx, l, p, nil, nil)
}

func (b *bench) moveInClear(ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
	return b.migrate(ctx, l, p, []string{"--allow-cleartext"}, []string{"--cleartext"})
}

// moveOver pushes memory over so many connections.
func moveOver(connections string) func(*bench, context.Context, *lab.Lab, *process) (*outcome, error) {
	return func(b *bench, ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
		return b.migrate(ctx, l, p, nil, []string{"--connections", connections})
	}
}

func moveByMode(mode string) func(*bench, context.Context, *lab.Lab, *process) (*outcome, error) {
	return func(b *bench, ctx context.Context, l *lab.Lab, p *process) (*outcome, error) {
		return b.migrate(ctx, l, p, nil, []string{"--mode", mode})
	}
}

// migrate runs the very commands of a user.
func (b *bench) migrate(ctx context.Context, l *lab.Lab, p *process, agentArgs, args []string) (_ *outcome, err error) {
	agent := l.B.Command(ctx, b.lazymig, append([]string{"agent", "--listen", l.B.Addr + ":" + agentPort, "--tls-dir", b.keys}, agentArgs...)...)
	var agentLog bytes.Buffer
	agent.Stderr = &agentLog
	agent.WaitDelay = 5 * time.Second // a capsule that outlives it has its stderr, too
	said, err := agent.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := agent.Start(); err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	stop := func() error {
		_ = agent.Process.Signal(syscall.SIGTERM)
		return agent.Wait()
	}
	defer func() {
		if err != nil {
			_ = stop() // the error is told
		}
	}()
	if line, err := bufio.NewReader(said).ReadString('\n'); err != nil || !strings.Contains(line, "listens") {
		return nil, fmt.Errorf("start agent: it says %q\n%s", line, agentLog.String())
	}
	to := l.B.Addr + ":" + agentPort
	if b.rtt > 0 {
		var endLine func()
		far := to
		to = l.A.Addr + ":" + delayPort
		if endLine, err = b.longLine(ctx, l.A, to, far, b.rtt); err != nil {
			return nil, err
		}
		end := stop
		stop = func() error { defer endLine(); return end() }
	}
	args = append([]string{"migrate", "--json", "--pid", strconv.Itoa(p.pid), "--to", to, "--tls-dir", b.keys, "--until", "drained"}, args...)
	cmd := l.A.Command(ctx, b.lazymig, args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	events, herr := b.follow(out)
	if err := cmd.Wait(); err != nil {
		logs, _ := l.A.Command(ctx, "/bin/sh", "-c", "tail -n 40 /var/lib/lazymig/*.log").CombinedOutput()
		if b.verbose {
			fmt.Fprintf(os.Stderr, "--- agent's log\n%s\n--- source's log\n%s\n", agentLog.String(), logs)
		}
		return nil, fmt.Errorf("lazymig migrate: %w\n%s", err, errOut.String())
	}
	o := &outcome{resultOn: l.A, end: stop} // the result goes through the agent's FUSE daemon
	var drainMS float64
	if herr != nil {
		return nil, herr
	}
	for _, e := range events {
		switch e.Event {
		case "chosen":
			o.chosen = &e
		case "frozen":
			o.frozen = e.Time
		case "resumed":
			o.pid, o.downtimeMS, o.resumed = e.TargetPID, e.DowntimeMS, e.Time
		case "done":
			o.dumpMS, o.transferMS, o.restoreMS, o.grantMS = e.DumpMS, e.TransferMS, e.RestoreMS, e.GrantMS
			o.bytes, o.faultP50, o.faultP99, drainMS = e.MemoryBytes, e.FaultP50US, e.FaultP99US, e.DrainMS
			o.sent, o.aheadMS, o.done = e.BytesSent, e.AheadMS, &e
		}
	}
	if o.pid == 0 || drainMS == 0 || o.frozen.IsZero() {
		return nil, errors.New("lazymig migrate: its events are not complete")
	}
	o.drained = o.resumed.Add(time.Duration(drainMS * float64(time.Millisecond)))
	return o, nil
}

// follow reads the events of a migration up to its end.
func (b *bench) follow(out io.Reader) (events []migrate.Event, err error) {
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		var e migrate.Event
		if jerr := json.Unmarshal(sc.Bytes(), &e); jerr != nil {
			err = errors.Join(err, fmt.Errorf("event %q: %w", sc.Text(), jerr))
		}
		events = append(events, e)
		if e.Event == "resumed" && b.afterResume != nil {
			err = errors.Join(err, b.afterResume(e.TargetPID))
		}
	}
	return events, errors.Join(err, sc.Err())
}

// said is the output of a failed command, for people.
func said(what string, err error, out []byte) error {
	return fmt.Errorf("%s: %w\n%s", what, err, out)
}

func statusError(ws syscall.WaitStatus) error {
	if ws.Exited() && ws.ExitStatus() == 0 {
		return nil
	}
	return fmt.Errorf("ended with status %#x", uint32(ws))
}
