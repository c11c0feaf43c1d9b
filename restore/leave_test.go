package restore

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// The tree goes on with a PID 1 that has nothing, and that ends with it.
func TestLeave(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.NeedRoot(t)
	l := held(t, startTree(t, 16))
	if err := l.c.Leave(testContext(t)); err == nil {
		t.Fatal("a guardian that is needed has left")
	}
	l.release(t)
	if err := l.c.StartDrain(false); err != nil {
		t.Fatal(err)
	}
	event(t, l.c, EventDrained)
	l.gone(t)
	if err := l.c.Leave(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if l.h.PID() != 0 {
		t.Error("there is a handler")
	}
	pid := l.c.PID()
	kerneltest.Eventually(t, "PID 1 is called init", func() bool { // its first instructions
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && string(b) == "init\n"
	})
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(fds) > 0 {
		t.Errorf("PID 1 has descriptors: %v, %v", fds, err)
	}
	if maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid)); err != nil || strings.Contains(string(maps), " /") && !strings.Contains(string(maps), "/memfd:init") {
		t.Errorf("PID 1 has mappings of files: %s, %v", maps, err)
	}
	l.verify(t)
	l.set(boxCommand, 2)
	<-l.c.Done() // the last process has ended, PID 1 has reaped it
}
