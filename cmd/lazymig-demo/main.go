// Command lazymig-demo shows a migration on one machine: two hosts in namespaces, a Redis with 1 GB and a client that writes all
// the time, moved by the very command that a user would type. It exits 0 only if no byte is wrong, no acknowledged write is lost, and
// nothing of lazymig is left.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/lab"
)

const (
	redisPort = "6379"
	agentPort = "7070"
	keyCount  = 1_000_000
	valueSize = 1000
	patience  = 60 * time.Second
)

func main() {
	lab.MaybeInit()
	var err error
	if len(os.Args) > 1 {
		err = tool(os.Args[1:])
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = demo(ctx)
		stop()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "lazymig-demo: %v\n", err)
		os.Exit(1)
	}
}

// show is the demo's state.
type show struct {
	l       *lab.Lab
	self    string
	lazymig string
	keys    string
}

func demo(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	bin := filepath.Dir(self)
	tls, err := os.MkdirTemp(bin, ".demo-keys-")
	if err != nil {
		return fmt.Errorf("make key directory: %w", err)
	}
	defer os.RemoveAll(tls)
	share := append(lab.ProjectShare(filepath.Dir(bin)), bin)
	fmt.Println("making hosts A and B: namespaces, a link; B has its own files, name, and a clock 1,000 s ahead")
	l, err := lab.Up(ctx, lab.Options{Share: share})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down()) }()
	s := &show{l: l, self: self, lazymig: filepath.Join(bin, "lazymig"), keys: tls}
	if err := errors.Join(keys.Init(tls), keys.Host(tls, l.A.Addr, l.B.Addr)); err != nil {
		return err
	}
	return s.run(ctx)
}

func (s *show) run(ctx context.Context) error {
	agent := s.l.B.Command(ctx, s.lazymig, "agent", "--listen", s.l.B.Addr+":"+agentPort, "--tls-dir", s.keys)
	var agentLog bytes.Buffer
	agent.Stderr = &agentLog
	if err := agent.Start(); err != nil {
		return fmt.Errorf("start agent: %w", err)
	}
	defer func() {
		_ = agent.Process.Signal(syscall.SIGTERM)
		_ = agent.Wait() // it is told to end
	}()
	err := s.moved(ctx)
	if err != nil {
		fmt.Fprintf(os.Stderr, "--- agent's log\n%s", tail(agentLog.String(), 40))
	}
	return err
}

func tail(s string, n int) string {
	lines := strings.SplitAfter(s, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "")
}

// in runs one of the demo's own tools inside a host and returns what it prints.
func (s *show) in(ctx context.Context, h *lab.Host, args ...string) (string, error) {
	cmd := h.Command(ctx, s.self, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s on host %s: %w", args[0], h.Name, err)
	}
	return strings.TrimSpace(out.String()), nil
}

// local declares what the hosts' roots hold beside /srv to be the target's own: both have it from this machine.
func (s *show) local(ctx context.Context) (args []string, err error) {
	out, err := s.l.A.Command(ctx, "/bin/sh", "-c", `cd /; for d in *; do [ -d $d -a ! -L $d ] && echo /$d; done | grep -vxE '/(srv|dev|proc|sys)'`).Output()
	if err != nil {
		return nil, fmt.Errorf("list directories of host A: %w", err)
	}
	dirs := strings.Fields(string(out))
	if err := s.l.B.Command(ctx, "mkdir", append([]string{"-p"}, dirs...)...).Run(); err != nil {
		return nil, fmt.Errorf("make directories on host B: %w", err)
	}
	for _, d := range dirs {
		args = append(args, "--local", d)
	}
	return args, nil
}

func (s *show) moved(ctx context.Context) error {
	a, b := s.l.A, s.l.B
	fmt.Println("starting redis-server on A with an append-only file, filling it with 1 GB")
	redis, err := a.Spawn(lab.Spawn{Args: []string{
		"/bin/sh", "-c", "mkdir -p /srv/redis && exec redis-server --dir /srv/redis --appendonly yes --save '' --port " + redisPort +
			" --bind 0.0.0.0 --protected-mode no --enable-debug-command yes --logfile /srv/redis/redis.log </dev/null >/dev/null 2>&1",
	}})
	if err != nil {
		return fmt.Errorf("start redis-server: %w", err)
	}
	defer redis.Close()
	if _, err := s.in(ctx, a, "fill", a.Addr, strconv.Itoa(keyCount)); err != nil {
		return err
	}
	before, err := s.in(ctx, a, "digest", a.Addr, strconv.Itoa(keyCount))
	if err != nil {
		return err
	}
	fmt.Printf("digest of %d keys that nobody writes: %s\n", keyCount, before)
	client := a.Command(ctx, s.self, "client", a.Addr, b.Addr)
	var report bytes.Buffer
	client.Stdout, client.Stderr = &report, os.Stderr
	if err := client.Start(); err != nil {
		return fmt.Errorf("start client: %w", err)
	}
	stopped := false
	defer func() {
		if !stopped {
			_ = client.Process.Kill()
			_ = client.Wait() // killed
		}
	}()
	args := []string{"migrate", "--pid", strconv.Itoa(redis.Pid), "--to", b.Addr + ":" + agentPort, "--tls-dir", s.keys}
	fmt.Printf("\nA# lazymig %s\n", strings.Join(args[:len(args)-2], " "))
	local, err := s.local(ctx)
	if err != nil {
		return err
	}
	args = append(args, local...)
	mig := a.Command(ctx, s.lazymig, args...)
	mig.Stdout, mig.Stderr = os.Stdout, os.Stderr
	if err := mig.Run(); err != nil {
		logs, _ := a.Command(ctx, "/bin/sh", "-c", "tail -n 30 /var/lib/lazymig/*.log").CombinedOutput()
		fmt.Fprintf(os.Stderr, "--- source's log\n%s", logs)
		return fmt.Errorf("lazymig migrate: %w", err)
	}
	after, err := s.in(ctx, b, "digest", b.Addr, strconv.Itoa(keyCount))
	if err != nil {
		return err
	}
	fmt.Printf("\ndigest on B: %s\n", after)
	_ = client.Process.Signal(syscall.SIGTERM)
	err = client.Wait()
	stopped = true
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	var r clientReport
	if err := json.Unmarshal(report.Bytes(), &r); err != nil {
		return fmt.Errorf("report of the client: %w", err)
	}
	fmt.Printf("client: %d writes acknowledged, %d of them after the move; %d lost, %d wrong; longest pause %.0f ms\n", r.Acked, r.OnB, r.Lost, r.Wrong, r.PauseMS)
	if _, err := s.in(ctx, b, "stop", b.Addr); err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	left, err := s.l.Remains(rctx)
	if err != nil {
		return err
	}
	switch {
	case before != after:
		return errors.New("the digests differ")
	case r.Lost+r.Wrong > 0:
		return errors.New("acknowledged writes are lost or wrong")
	case r.OnB == 0:
		return errors.New("the client never wrote to B")
	case left != "":
		return fmt.Errorf("left behind:\n%s", left)
	}
	fmt.Println("redis-server stopped on B; nothing of lazymig is left on A and B but the agent. All is as it was.")
	return nil
}
