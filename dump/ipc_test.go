package dump

import (
	"cmp"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// TestIPCNamespace: an IPC namespace of the tree's own is dumped if there is anything of System V in it, and one that was empty when the dump was prepared is
// looked at again.
func TestIPCNamespace(t *testing.T) {
	need(t)
	for _, c := range []struct {
		name, made string
		outside    bool
	}{
		{"nothing", "", false},
		{"memory", "shmget(5, 4096, IPC_CREAT | 0600)", true},
		{"semaphores", "semget(5, 1, IPC_CREAT | 0600)", true},
		{"queue", "msgget(5, IPC_CREAT | 0600)", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := program(t, `
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <unistd.h>
static void later(int s) { semget(9, 1, IPC_CREAT | 0600); }
int main(void) {
	if (unshare(CLONE_NEWIPC)) return 1;
	if (`+cmp.Or(c.made, "0")+` < 0) return 2;
	signal(SIGUSR1, later);
	write(1, "", 1);
	for (;;) pause();
}`)
			d := prepare(t, Options{PID: cmd.Process.Pid, ID: wire.NewID()})
			if d.ns.ipc == nil || d.ns.sysV != c.outside {
				t.Errorf("left outside: %v, want %v", d.ns.sysV, c.outside)
			}
			if c.outside {
				return
			}
			if err := cmd.Process.Signal(unix.SIGUSR1); err != nil {
				t.Fatal(err)
			}
			kerneltest.Eventually(t, "semaphores", func() bool {
				found, err := sysVIn(d.ns.ipc)
				return found && err == nil
			})
			if _, err := d.Freeze(testContext(t)); !errors.Is(err, ErrChanged) {
				t.Errorf("freeze with semaphores that are new: %v", err)
			}
		})
	}
}
