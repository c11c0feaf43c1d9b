package e2e

import (
	"strconv"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestDetachFio detaches an fio that writes blocks at random, with the checksum of each in it, and then reads all of them back.
func TestDetachFio(t *testing.T) {
	kerneltest.NeedProgram(t, "fio")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	r.sh(a, "mkdir /srv/fio")
	// --thread: one process. Slow enough to be writing when it is detached, and bound by what it writes, not by time.
	p := r.spawn(a, "/bin/sh", "-c", `cd /srv/fio && exec unshare -i fio --name=v --thread --filename=/srv/fio/f --size=24M --rw=randwrite --bs=4k --ioengine=psync \
--rate=3M --loops=1 --verify=crc32c --do_verify=1 --verify_fatal=1 --fsync=64 --output=/srv/fio/out --disable_lat=1 >/srv/fio/said 2>&1 </dev/null`)
	r.eventually("fio to write", func() bool { return r.sh(a, "stat -c %b /srv/fio/f 2>/dev/null || echo 0") > "0" })
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	r.eventually("fio to end", func() bool { return r.sh(b, "test -d /proc/"+strconv.Itoa(pid)+" || echo ended") == "ended" })
	out := r.sh(b, "cat "+root+"/srv/fio/out "+root+"/srv/fio/said")
	if !strings.Contains(out, "err= 0") || !strings.Contains(out, "READ:") {
		t.Errorf("fio says: %s", out)
	}
	r.over(b)
}
