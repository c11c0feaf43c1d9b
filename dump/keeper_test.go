package dump

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// dumpAndDie runs in a process of its own: it stops at the step it is told and waits to be killed.
func dumpAndDie(args []string) int {
	step := args[0]
	o := Options{}
	_, _ = fmt.Sscan(args[1], &o.PID)
	o.ID, _ = wire.ParseID(args[2])
	o.WorkDir = args[3]
	o.GrantRecord, o.GrantMark = filepath.Join(o.WorkDir, "record"), "state granted"
	_ = os.WriteFile(o.GrantRecord, []byte("state prepare\n"), 0o600)
	stop := func() {
		fmt.Println("there")
		select {}
	}
	o.hooks.script = func(script string, _ int) {
		if script == step {
			stop()
		}
	}
	d, err := Prepare(context.Background(), o)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if step == "prepared" {
		stop()
	}
	if _, err := d.Freeze(context.Background()); err != nil {
		fmt.Println(err)
		return 1
	}
	if step == "recorded" {
		_ = os.WriteFile(o.GrantRecord, []byte("state prepare\nstate granted\n"), 0o600)
	}
	if step == "granted" {
		if err := d.Granted(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	stop()
	return 0
}

// TestKeeper kills the dumping process at each step: the tree runs on, or stays frozen where the grant was given.
func TestKeeper(t *testing.T) {
	need(t)
	for _, step := range []string{"prepared", "query-ext-files", "post-dump", "frozen", "recorded", "granted"} {
		t.Run(step, func(t *testing.T) {
			c := startChecker(t, 16, 4, 2, nil)
			before := c.cgroups()
			id := wire.NewID()
			work, err := os.MkdirTemp("/dev/shm", "lazymig-test-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(work)
			cmd := exec.Command("/proc/self/exe", "dump-and-die", step, fmt.Sprint(c.pid), id.String(), work)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 4096)
			n, err := out.Read(b)
			if err != nil || string(b[:n]) != "there\n" {
				t.Errorf("%q, %v", b[:n], err)
			}
			keeper := childNamed(t, cmd.Process.Pid, KeeperArg)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if keeper != 0 {
				kerneltest.Eventually(t, "the keeper has ended", func() bool {
					state, _, err := readStat(keeper) // an orphan: its reaper may take its time
					return err != nil || state == 'Z'
				})
			}
			if step == "granted" || step == "recorded" {
				h, err := openHierarchy()
				if err != nil {
					t.Fatal(err)
				}
				defer h.root.Close()
				cg, err := h.of(c.pid)
				if err != nil {
					t.Fatal(err)
				}
				frozen, err := h.event(cg, "frozen")
				if err != nil || !frozen || !strings.Contains(cg, id.String()[:8]) {
					t.Errorf("after the grant: cgroup %s, frozen %v (%v)", cg, frozen, err)
				}
				if err := h.write(cg, "cgroup.kill", "1"); err != nil {
					t.Fatal(err)
				}
				if err := h.await(testContext(t), cg, "populated", false, time.Minute); err != nil {
					t.Fatal(err)
				}
				if err := h.remove(cg); err != nil {
					t.Fatal(err)
				}
				return
			}
			c.runs()
			c.clean(before, id)
		})
	}
}

// childNamed finds a child of pid by its first argument.
func childNamed(t *testing.T, pid int, arg string) int {
	t.Helper()
	kids, err := children(pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", k))
		if f := strings.Split(string(b), "\x00"); len(f) > 1 && f[1] == arg {
			return k
		}
	}
	return 0
}

// TestKeeperGone: a keeper that was killed is no reason for a grant to fail, nor to thaw.
func TestKeeperGone(t *testing.T) {
	need(t)
	c := startChecker(t, 8, 1, 0, nil)
	d := prepare(t, options(t, c))
	if _, err := d.Freeze(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	ticks := c.word(wordTicks)
	_ = d.keeper.cmd.Process.Kill()
	if err := d.Granted(); err != nil {
		t.Fatal(err)
	}
	if now := c.word(wordTicks); now != ticks {
		t.Errorf("the tree has counted from %d to %d", ticks, now)
	}
	if err := d.KillTree(); err != nil {
		t.Fatal(err)
	}
}
