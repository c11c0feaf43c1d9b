package e2e

import "testing"

// TestIPC moves a process that has semaphores and a queue with messages, of System V, in an IPC namespace of its own, there and back; with shared memory and without.
func TestIPC(t *testing.T) {
	for _, kb := range []string{"0", "1028"} {
		t.Run(kb, func(t *testing.T) {
			r := newRig(t, "ipc")
			a, b := r.l.A, r.l.B
			r.agent(a)
			p := r.spawn(a, "/bin/sh", "-c", "exec unshare -i "+r.dir+"/ipc "+kb+" /srv/status")
			r.goesOn(a, "/srv/status")
			pid, _ := r.move(a, b, p.Pid)
			r.goesOn(a, "/srv/status")
			back, _ := r.move(b, a, pid)
			r.goesOn(a, "/srv/status")
			r.ended(a, a, back, "/srv/status")
			r.clean()
		})
	}
}
