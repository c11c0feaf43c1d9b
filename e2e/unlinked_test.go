package e2e

import (
	"strconv"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// unlinked starts a process on A that holds an unlinked file open of which another link is there, and one of which none is.
func (r *rig) unlinked() *lab.Proc {
	r.t.Helper()
	p := r.spawn(r.l.A, "/usr/bin/python3", "-c", unlinkedProgram)
	r.says(r.l.A, "python3 to be ready", "ls /srv/u | tr '\n' ' '", "g ready")
	return p
}

const unlinkedProgram = `import os, signal, time
os.makedirs("/srv/u", exist_ok=True)
os.chdir("/srv/u")
f = open("f", "w+"); f.write("linked"); f.flush(); os.link("f", "g"); os.unlink("f")
h = open("h", "w+"); h.write("gone"); h.flush(); os.unlink("h")
got = []
signal.signal(signal.SIGUSR1, lambda *a: got.append(1))
open("ready", "w").close()
while not got: time.sleep(0.02)
f.seek(0); h.seek(0)
ok = f.read() == "linked" and h.read() == "gone" and os.fstat(f.fileno()).st_nlink == 1 and os.fstat(h.fileno()).st_nlink == 0
f.write(" and written"); f.flush()
ok = ok and open("g").read() == "linked and written" and sorted(os.listdir(".")) == ["g", "ready"]
open("verdict.new", "w").write("OK" if ok else "BAD %r" % os.listdir("."))
os.rename("verdict.new", "verdict")
while True: time.sleep(1)
`

// TestUnlinked moves a process that holds an unlinked file open of which another link is there, and one of which none is: both are what they
// were, and nothing that the move made lies about.
func TestUnlinked(t *testing.T) {
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.unlinked()
	pid, _ := r.move(a, b, p.Pid)
	r.sh(b, "kill -USR1 "+strconv.Itoa(pid))
	r.says(a, "verdict", "cat /srv/u/verdict", "OK")
	r.end(b, pid, "KILL")
	r.says(a, "nothing to lie about", "ls /srv/u | tr '\\n' ' '", "g ready verdict")
	r.clean()
}
