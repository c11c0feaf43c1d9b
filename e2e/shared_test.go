package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// sharer starts testdata/sharer.c and waits until all its processes check.
func (r *rig) sharer(h *lab.Host, mb, processes int, more ...string) *lab.Proc {
	r.t.Helper()
	p := r.spawn(h, append([]string{r.dir + "/sharer", strconv.Itoa(mb), strconv.Itoa(processes), "/srv/status"}, more...)...)
	r.goesOn(h, "/srv/status")
	return p
}

// TestShared moves processes that share memory: it comes lazily, and every page is right for each of them. The source's process is killed when nothing
// has been pushed yet: another one opens the memory again.
func TestShared(t *testing.T) {
	const mb = 256
	r := newHosts(t, "sharer")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	p := r.sharer(a, mb, 4)
	g := r.begin(a, b, p.Pid)
	r.parked(ag)
	r.killSource()
	r.sh(b, "touch "+gate)
	m := g.wait()
	if m.code != 0 {
		t.Fatalf("migrate ended with %d: %s", m.code, m.stderr)
	}
	r.goesOn(a, "/srv/status")
	if d := m.get("done"); d == nil || d.MemoryBytes < mb<<20*3/4 || d.Faults == 0 {
		t.Errorf("done event: %+v", d)
	}
	r.ended(a, b, m.get("resumed").TargetPID, "/srv/status")
	r.clean()
}

// TestSharedChurn moves processes that move, double, cut, grow, drop and fork their shared memory while it comes over a slow link and the process
// that brings it is killed all the time.
func TestSharedChurn(t *testing.T) {
	r := newRig(t, "sharer")
	a, b := r.l.A, r.l.B
	p := r.sharer(a, 64, 4, "churn")
	r.sh(a, "tc qdisc add dev eth0 root tbf rate 100mbit burst 256k latency 100ms")
	g := r.begin(a, b, p.Pid)
	const kills = 20
	m, during := g.waitKilling(b, kills)
	if during < kills/2 {
		t.Errorf("only %d kills before all memory was there", during)
	}
	r.goesOn(a, "/srv/status")
	r.ended(a, b, m.get("resumed").TargetPID, "/srv/status")
	if log := r.agents[b].log.String(); strings.Contains(log, "call was not seen") || strings.Contains(log, "has not been brought") {
		t.Errorf("agent on B says:\n%s", log)
	}
	r.clean()
}

// TestSharedThereAndBack moves processes twice: CRIU has made their shared memory a memfd then.
func TestSharedThereAndBack(t *testing.T) {
	r := newRig(t, "sharer")
	a, b := r.l.A, r.l.B
	r.agent(a)
	p := r.sharer(a, 16, 2, "churn")
	pid, _ := r.move(a, b, p.Pid)
	r.goesOn(a, "/srv/status")
	back, m := r.move(b, a, pid)
	if e := m.get("notice"); e != nil {
		t.Errorf("the way back: %s", e.Text)
	}
	r.goesOn(a, "/srv/status")
	r.ended(a, a, back, "/srv/status")
	r.clean()
}

// TestSharedMemfd moves processes that share a memfd twice. One that is mapped and not open any more comes lazily, and is the same for all who look at it: its name, its
// mode, its seals. One that is open could be read without a fault, so it comes whole.
func TestSharedMemfd(t *testing.T) {
	r := newRig(t, "sharer")
	a, b := r.l.A, r.l.B
	r.agent(a)
	looks := func(h *lab.Host, pid int) string {
		return r.sh(h, fmt.Sprintf(`cd /proc/%d/map_files && f=$(readlink -f . | xargs -I{} find {} -lname '/memfd:shared*' | head -1) && readlink $f && stat -L -c '%%a %%u %%g %%s' $f &&
python3 -c 'import fcntl,os,sys; print(fcntl.fcntl(os.open(sys.argv[1], os.O_RDONLY), 1034))' $f`, pid))
	}
	p := r.sharer(a, 16, 4, "memfd")
	home := looks(a, p.Pid)
	if !strings.Contains(home, "/memfd:shared") {
		t.Fatalf("shared memory on A: %q", home)
	}
	pid, m := r.move(a, b, p.Pid)
	if n := m.get("notice"); n == nil || !strings.Contains(n.Text, "2 MB") || !strings.Contains(n.Text, "has it open as descriptor") {
		t.Errorf("notice: %+v", n)
	}
	if d := m.get("done"); d == nil || d.MemoryBytes < 16<<20*3/4 {
		t.Errorf("done event: %+v", d)
	}
	r.goesOn(a, "/srv/status")
	if moved := looks(b, pid); moved != home {
		t.Errorf("shared memory on A: %q, on B: %q", home, moved)
	}
	back, _ := r.move(b, a, pid)
	r.goesOn(a, "/srv/status")
	if moved := looks(a, back); moved != home {
		t.Errorf("shared memory on A: %q, back there: %q", home, moved)
	}
	r.ended(a, a, back, "/srv/status")
	r.clean()
}

// TestSharedFiles moves processes that share files of /dev/shm, which come as files do, and are detached with them.
func TestSharedFiles(t *testing.T) {
	r := newRig(t, "sharer")
	a, b := r.l.A, r.l.B
	p := r.sharer(a, 16, 4, "shm")
	pid, _ := r.move(a, b, p.Pid)
	r.goesOn(a, "/srv/status")
	r.ended(a, b, pid, "/srv/status")
	r.clean()
}
