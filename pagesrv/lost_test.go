package pagesrv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/internal/pagemap"
	"github.com/lazymig/lazymig/wire"
)

// TestKilledTask: the address space of a killed task scans as empty. That must not be taken for zeros.
func TestKilledTask(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	for _, legacy := range []bool{false, true} {
		t.Run(fmt.Sprintf("legacy=%v", legacy), func(t *testing.T) {
			p := start(t)
			s := newServer(t, Task{uint32(p.pid), p.pid})
			s.legacy = s.legacy || legacy
			c := newClient(t)
			attach(t, s, c, wire.LaneUrgent)
			req := Request{uint32(p.pid), p.area(t, "untouched").start, 64}
			if g, err := fetch(t, c, wire.LaneUrgent, req); err != nil || g.kinds[0] != KindZero {
				t.Fatalf("before: %v, %v", g.kinds, err)
			}
			if err := p.cmd.Process.Kill(); err != nil { // but not yet reaped
				t.Fatal(err)
			}
			var info unix.Siginfo
			if err := unix.Waitid(unix.P_PID, p.pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
				t.Fatal(err)
			}
			for _, reap := range []bool{false, true} {
				if reap {
					p.kill()
				}
				for _, name := range []string{"plain", "untouched", "prot_none", "guard", "holes"} {
					req := Request{uint32(p.pid), p.area(t, name).start, 30}
					if g, err := fetch(t, c, wire.LaneUrgent, req); !errors.Is(err, ErrSourceLost) {
						t.Fatalf("%s, reaped=%v: %v, %v", name, reap, g.runs, err)
					}
				}
			}
		})
	}
	// Never asked before it died.
	s := newServer(t, Task{uint32(p.pid), p.pid})
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	plain := p.area(t, "plain").start
	p.kill()
	if g, err := fetch(t, c, wire.LaneUrgent, Request{uint32(p.pid), plain, 1}); !errors.Is(err, ErrSourceLost) {
		t.Fatalf("%v, %v", g.runs, err)
	}
}

// TestScanHeld: the scan of an address space that has lost its last user must not count, though the task lives on (in another).
func TestScanHeld(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	f, err := openFiles(p.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	tk, err := openTask(uint32(p.pid), p.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer tk.close()
	if err := tk.scanHeld(f); err != nil {
		t.Fatal(err)
	}
	plain := p.area(t, "plain").start
	if err := unix.Kill(p.pid, unix.SIGCONT); err != nil { // makes it exec
		t.Fatal(err)
	}
	p.stopped(t)
	if pagemap.Probe().Scan {
		r := &reading{}
		r.whole.buf = make([]byte, 64*PageSize)
		r.look(Request{Addr: plain, Pages: 64}, 0)
		err := f.scan(r, false)
		t.Logf("this kernel's scan says %v, and %v", err, r.kinds[0])
		if err == nil && r.kinds[0] != 0 || err != nil && !errors.Is(err, unix.ESRCH) {
			t.Errorf("neither empty nor ESRCH")
		}
	}
	if err := tk.scanHeld(f); !errors.Is(err, ErrSourceLost) {
		t.Fatalf("scanHeld: %v", err)
	}
}

// TestPendingKill: a task with SIGKILL pending may be losing its pages to the OOM reaper.
func TestPendingKill(t *testing.T) {
	kerneltest.Leaks(t)
	for _, c := range []struct {
		own, shared string
		want        bool
	}{
		{"0000000000000000", "0000000000000000", false},
		{"0000000000000100", "0000000000000000", true},
		{"0000000000000000", "0000000000000100", true},
		{"fffffffffffffeff", "fffffffffffffeff", false},
	} {
		for _, groups := range []int{0, 3000} {
			f, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(f, "Name:\tx\nGroups:\t%s\nThreads:\t1\nSigPnd:\t%s\nShdPnd:\t%s\nSigBlk:\t0\n", bytes.Repeat([]byte("65534 "), groups), c.own, c.shared)
			if k, err := killPending(f); err != nil || k != c.want {
				t.Errorf("%+v with %d groups: %v, %v", c, groups, k, err)
			}
			_ = f.Close()
		}
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "Name:\tx\nSigPnd:\t0000000000000000\nShdPnd:\t00000")
	if _, err := killPending(f); err == nil {
		t.Error("half a line was taken for an answer")
	}
}

func TestWrongPID(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	if _, err := NewServer(ServerOptions{Tasks: []Task{{uint32(p.pid) + 1, p.pid}}}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a process with another number: %v", err)
	}
	if _, err := NewServer(ServerOptions{Tasks: []Task{{uint32(p.pid), p.pid}, {uint32(p.pid), p.pid}}}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a task twice: %v", err)
	}
	p.kill()
	if _, err := NewServer(ServerOptions{Tasks: []Task{{uint32(p.pid), p.pid}}}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a process that is no more: %v", err)
	}
}

// TestReapedVictim stops a killed task on its way out and has its memory taken away, as the OOM reaper does.
// It is no zombie, its address space has a user, PAGEMAP_SCAN finds nothing in it: only the pending SIGKILL tells.
func TestReapedVictim(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	s := newServer(t, Task{uint32(p.pid), p.pid})
	c := newClient(t)
	attach(t, s, c, wire.LaneUrgent)
	a := p.area(t, "plain")
	if g, err := fetch(t, c, wire.LaneUrgent, Request{uint32(p.pid), a.start, 64}); err != nil || g.kinds[0] != KindData {
		t.Fatalf("before: %v, %v", g.kinds, err)
	}
	runtime.LockOSThread() // the tracer is a thread
	defer runtime.UnlockOSThread()
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(p.pid), 0, unix.PTRACE_O_TRACEEXIT, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	defer func() { _ = unix.PtraceDetach(p.pid) }() // else it could not be reaped
	if err := unix.Kill(p.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(p.pid, &ws, unix.WALL, nil); err != nil {
			t.Fatal(err)
		}
		if ws.Stopped() && ws.TrapCause() == unix.PTRACE_EVENT_EXIT {
			break
		}
		if !ws.Stopped() {
			t.Fatalf("the task ended (%#x) without a stop", ws)
		}
	}
	tk := s.tasks[uint32(p.pid)]
	if _, _, errno := unix.Syscall(unix.SYS_PROCESS_MRELEASE, tk.pidfd.Fd(), 0, 0); errno != 0 {
		t.Fatalf("process_mrelease: %v", errno)
	}
	if err := tk.exists(); err != nil {
		t.Fatalf("the task is not to have ended yet: %v", err)
	}
	if pagemap.Probe().Scan {
		r := &reading{}
		r.whole.buf = make([]byte, 64*PageSize)
		r.look(Request{Addr: a.start, Pages: 64}, 0)
		if err := tk.files.scan(r, false); err != nil || r.kinds[0] != 0 {
			t.Fatalf("the scan is to find nothing: %v, %v", r.kinds[0], err)
		}
	}
	for _, name := range []string{"plain", "untouched"} {
		if g, err := fetch(t, c, wire.LaneUrgent, Request{uint32(p.pid), p.area(t, name).start, 64}); !errors.Is(err, ErrSourceLost) {
			t.Errorf("%s: %v, %v", name, g.runs, err)
		}
	}
}

// TestExec: an address space left behind by exec is not the task's; Refresh finds the new one.
func TestExec(t *testing.T) {
	kerneltest.Leaks(t)
	p := start(t)
	for _, legacy := range []bool{false, true} {
		s := newServer(t, Task{uint32(p.pid), p.pid})
		s.legacy = s.legacy || legacy
		c := newClient(t)
		attach(t, s, c, wire.LaneUrgent)
		a := p.area(t, "untouched")
		if g, err := fetch(t, c, wire.LaneUrgent, Request{uint32(p.pid), a.start, 1}); err != nil || g.kinds[0] != KindZero {
			t.Fatalf("before: %v, %v", g.kinds, err)
		}
		if err := unix.Kill(p.pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		p.stopped(t)
		if g, err := fetch(t, c, wire.LaneUrgent, Request{uint32(p.pid), a.start, 1}); !errors.Is(err, ErrSourceLost) {
			t.Fatalf("after exec: %v, %v", g.kinds, err)
		}
		if err := s.Refresh(); err != nil {
			t.Fatal(err)
		}
		checkPages(t, c, wire.LaneUrgent, p, p.area(t, "holes"), 0, 64)
	}
}

// TestKillWhileServing kills the task at any moment: until the first error each page is right, and zeros never come.
func TestKillWhileServing(t *testing.T) {
	kerneltest.Leaks(t)
	for i := range 10 {
		p := start(t, "64")
		s := newServer(t, Task{uint32(p.pid), p.pid})
		s.legacy = s.legacy || i%2 == 1
		c := newClient(t)
		attach(t, s, c, wire.LaneUrgent)
		a := p.area(t, "big")
		n := 0
		for at := uint32(0); ; at = (at + 64) % a.pages {
			if n++; n == 5+i {
				_ = p.cmd.Process.Kill()
				_, _, _ = unix.Syscall(unix.SYS_PROCESS_MRELEASE, s.tasks[uint32(p.pid)].pidfd.Fd(), 0, 0)
			}
			addr := a.start + uint64(at)*PageSize
			g, err := fetch(t, c, wire.LaneUrgent, Request{uint32(p.pid), addr, 64})
			if err != nil {
				if !errors.Is(err, ErrSourceLost) || n < 5+i {
					t.Fatalf("request %d: %v", n, err)
				}
				break
			}
			for j, k := range g.kinds {
				if k == KindError && n >= 5+i {
					continue // seen by the scan, gone for the read
				}
				if k != KindData || !bytes.Equal(g.pages[j], pattern(addr+uint64(j)*PageSize)) {
					t.Fatalf("request %d: page %d is %v, or wrong", n, j, k)
				}
			}
		}
		p.kill()
		_ = c.Close()
		_ = s.Close()
	}
}
