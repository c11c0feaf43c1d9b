package e2e

import (
	"strconv"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestCompress moves memory that can be compressed: over a line that is limited that is found out, and each way can be demanded; all of it is
// the same after.
func TestCompress(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	for _, c := range []struct {
		name   string
		args   []string
		packed bool
	}{
		{"by itself", []string{"--bwlimit", "16M"}, true},
		{"zstd", []string{"--compress", "zstd"}, true},
		{"ahead", []string{"--mode", "hybrid", "--compress", "s2"}, true},
		{"none", []string{"--compress", "none"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			a, b := r.l.A, r.l.B
			p := r.spawn(a, "/usr/bin/python3", "-c", `
import hashlib, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
b = bytearray()
while len(b) < 48 << 20: b += b"%d bottles of beer on the wall, %d bottles of beer. " % (len(b), len(b) + 1)
d = hashlib.sha256(b).digest()
open("/srv/ready", "w")
signal.sigwait({signal.SIGUSR1})
with open("/srv/verdict", "w") as f: f.write(str(hashlib.sha256(b).digest() == d))
time.sleep(1000)`)
			r.eventually("python3 to be ready", func() bool { return r.sh(a, "ls /srv/ready 2>/dev/null; true") != "" })
			pid, m := r.move(a, b, p.Pid, c.args...)
			d := m.get("done")
			if d == nil {
				t.Fatalf("events %+v", m.events)
			}
			// Files are among the bytes, too, and are not packed.
			t.Logf("%d bytes were sent of %d", d.BytesSent, d.MemoryBytes)
			if packed := d.BytesSent < d.MemoryBytes; packed != c.packed {
				t.Errorf("%d bytes were sent of %d", d.BytesSent, d.MemoryBytes)
			}
			r.sh(b, "kill -USR1 "+strconv.Itoa(pid))
			r.says(a, "verdict", "cat /srv/verdict", "True")
			r.end(b, pid, "TERM")
			r.clean()
		})
	}
}
