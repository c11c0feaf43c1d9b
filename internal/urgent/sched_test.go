package urgent

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func policy(t *testing.T) uint32 {
	t.Helper()
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a.Policy
}

// A goroutine's thread is an urgent one until end, those that it starts are not, and Share leaves it alone.
func TestThread(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	allowed := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0) == nil
	if allowed {
		if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0); err != nil {
			t.Fatal(err)
		}
	}
	want := uint32(unix.SCHED_NORMAL) // where a cgroup has no real-time share Thread changes nothing
	if allowed {
		want = unix.SCHED_FIFO
	}
	end := Thread()
	if p := policy(t); p != want {
		t.Errorf("policy of an urgent thread is %d, not %d", p, want)
	}
	Share()
	if p := policy(t); p != want {
		t.Errorf("after Share it is %d", p)
	}
	other := make(chan uint32)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		other <- policy(t)
	}()
	if p := <-other; p != unix.SCHED_NORMAL {
		t.Errorf("policy of another thread is %d", p)
	}
	end()
	if p := policy(t); p != unix.SCHED_NORMAL {
		t.Errorf("policy after the end is %d", p)
	}
	if n := runtime.GOMAXPROCS(0); n < leastPs {
		t.Errorf("%d processors for the runtime", n)
	}
}
