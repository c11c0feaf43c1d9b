package detach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/parts"
)

// apartRoles are the hidden subcommands of the test binary: the process of a switch, which stops itself at a point of it, and an agent, which starts it.
var apartRoles = map[string]func() error{
	Arg: func() error {
		return Main(slog.Default(), func(point string) {
			if point == os.Getenv(parkEnv) {
				_ = unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP) // this very thread, at once
			}
		})
	},
	"test-agent": func() error {
		var a testAgent
		if err := json.Unmarshal([]byte(os.Getenv(agentEnv)), &a); err != nil {
			return err
		}
		out, err := a.run()
		if err == nil {
			fmt.Println(string(out.Note))
		}
		return err
	},
}

const (
	parkEnv  = "LAZYMIG_TEST_PARK"
	agentEnv = "LAZYMIG_TEST_AGENT"
)

// testAgent is what the agent's process must know.
type testAgent struct {
	Old, New, Procs, Outcome string
	PID                      int
	Dev                      uint64
}

func (a testAgent) run() (Outcome, error) {
	procs, err := os.Open(a.Procs)
	if err != nil {
		return Outcome{}, err
	}
	defer procs.Close()
	group, err := os.Open(filepath.Dir(filepath.Dir(a.Procs)))
	if err != nil {
		return Outcome{}, err
	}
	defer group.Close()
	tr := &tree{old: a.Old, new: a.New, pid: a.PID, dev: a.Dev}
	return Apart{
		Start: parts.Here{}.Start, Group: procs, Cgroup: group, MountNS: a.PID, Dev: a.Dev, Outcome: a.Outcome, Log: slog.Default(),
		Settle: func(ctx context.Context, inodes []uint64) (Settled, error) {
			l, err := tr.settle(ctx, inodes)
			return Settled{l, []byte("settled")}, err
		},
	}.Switch(context.Background())
}

// agent puts the tree into a cgroup of its own and describes it.
func (tr *tree) agent() testAgent {
	tr.t.Helper()
	dir := filepath.Join(kerneltest.CgroupRoot(tr.t), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		tr.t.Fatal(err)
	}
	procs := filepath.Join(dir, "cgroup.procs")
	tr.t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // what is still there
		kerneltest.Eventually(tr.t, "cgroup to be removed", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, fs.ErrNotExist)
		})
	})
	pids, err := tr.tasks()
	if err != nil {
		tr.t.Fatal(err)
	}
	for _, pid := range pids {
		if err := os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0); err != nil && !errors.Is(err, unix.ESRCH) { // a zombie
			tr.t.Fatal(err)
		}
	}
	return testAgent{tr.old, tr.new, procs, filepath.Join(tr.t.TempDir(), "outcome"), tr.pid, tr.dev}
}

// startAgent starts a switch that stops at a point, and waits for that.
func (a testAgent) start(t *testing.T, point string) (agent *exec.Cmd, worker int, out output) {
	t.Helper()
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "out")) // no pipe: the worker, which may live on, has it, too
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out = output(f.Name())
	agent = exec.Command("/proc/self/exe", "test-agent")
	agent.Env = append(os.Environ(), agentEnv+"="+string(b), parkEnv+"="+point)
	agent.Stdout, agent.Stderr = f, f
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	kerneltest.Eventually(t, "switch to be at "+point, func() bool {
		tids, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", agent.Process.Pid))
		for _, f := range tids {
			b, _ := os.ReadFile(f)
			for s := range strings.FieldsSeq(string(b)) {
				if pid, _ := strconv.Atoi(s); state(pid) == 'T' {
					worker = pid
				}
			}
		}
		return worker != 0
	})
	return agent, worker, out
}

// output is the path of a file with what a process has said.
type output string

func (o output) String() string {
	b, err := os.ReadFile(string(o))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// gone waits for the end of the process of a switch, which has become a child of others.
func gone(t *testing.T, worker int) {
	t.Helper()
	kerneltest.Eventually(t, "process of the switch to end", func() bool { s := state(worker); return s == 0 || s == 'Z' })
}

// TestAgentKilled kills who has started the switch: a tree that is settled comes to its local files, another goes on as it was.
func TestAgentKilled(t *testing.T) {
	for point, moves := range map[string]bool{"stopped": false, "settled": true, "open": true, "pivot": true, "commit": true, "release": true, "switched": true} {
		t.Run(point, func(t *testing.T) {
			kerneltest.Leaks(t)
			tr := startTree(t)
			a := tr.agent()
			agent, worker, _ := a.start(t, point)
			if err := agent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = agent.Wait() // killed
			if err := unix.Kill(worker, unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			gone(t, worker)
			out, err := ReadOutcome(a.Outcome)
			if moves != (err == nil) {
				t.Fatalf("outcome: %v", err)
			}
			if !moves {
				tr.check()
				if _, err := a.run(); err != nil { // by the next agent
					t.Fatal(err)
				}
			} else if string(out.Note) != "settled" || out.Report.Processes == 0 {
				t.Errorf("outcome: %+v", out)
			}
			if left := tr.uses(tr.dev); len(left) > 0 {
				t.Errorf("still used: %v", left)
			}
			tr.check()
		})
	}
}

// TestWorkerKilled kills the process of the switch: before anything has changed the tree goes on as it was, and can be moved; from then on it dies as a whole.
func TestWorkerKilled(t *testing.T) {
	for point, becomes := range map[string]string{"stopped": "stays", "settled": "stays", "open": "dies", "pivot": "dies", "commit": "dies", "release": "dies", "switched": "dies"} {
		t.Run(point, func(t *testing.T) {
			kerneltest.Leaks(t)
			tr := startTree(t)
			a := tr.agent()
			before, err := tr.tasks()
			if err != nil {
				t.Fatal(err)
			}
			agent, worker, out := a.start(t, point)
			if err := unix.Kill(worker, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			err = agent.Wait()
			if point == "switched" { // its agent finds the outcome
				if err != nil || strings.TrimSpace(out.String()) != "settled" {
					t.Errorf("agent: %v, %s", err, out)
				}
			} else if err == nil || !strings.Contains(out.String(), ErrDied.Error()) {
				t.Errorf("agent: %v, %s", err, out)
			} else if _, err := ReadOutcome(a.Outcome); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("outcome: %v", err)
			}
			if becomes == "dies" {
				kerneltest.Eventually(t, "tree to be dead", func() bool {
					for _, pid := range before {
						if s := state(pid); s != 0 && s != 'Z' && s != 'X' {
							return false
						}
					}
					return true
				})
				return
			}
			tr.check()
			if _, err := a.run(); err != nil {
				t.Fatal(err)
			}
			if left := tr.uses(tr.dev); len(left) > 0 {
				t.Errorf("still used: %v", left)
			}
			tr.check()
		})
	}
}
