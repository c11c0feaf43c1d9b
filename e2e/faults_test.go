package e2e

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// The faults harness: one migration for each pair of a point, at which it is held (package migrate, park), and a fault. In the end the tree
// must run on exactly one host, with all its pages right and not a step lost or made twice, as a witness outside both hosts sees it.
// It takes minutes: only `make test-faults` walks it, by LAZYMIG_FAULTS=all.

// points are where a migration is held, in their order.
var points = []struct {
	name   string
	source bool   // the source's part stands there, else the agent
	want   string // where the tree runs in the end; "": on either
}{
	{"images", false, ""},
	{"restore", false, ""},
	{"asked", false, ""},
	{"grant", true, ""},
	{"granted", true, "B"},
}

// fault is what happens while a migration is held.
type fault struct {
	name string
	do   func(f *faulty)
	want map[string]string // by point, instead of the point's own; "-": not tried, nobody runs the tree then until a person decides
}

const (
	onlySource = "A"
	onlyTarget = "B"
)

// before gives one outcome for all points before the grant.
func before(host string) map[string]string {
	return map[string]string{"images": host, "restore": host, "asked": host, "grant": host}
}

var faults = []fault{
	{name: "nothing", do: func(*faulty) {}, want: before(onlyTarget)},
	{name: "kill source", do: func(f *faulty) { f.kill(f.r.l.A, "lazymig [s]ource") }, want: before(onlySource)},
	{name: "kill keeper", do: func(f *faulty) { f.kill(f.r.l.A, "lazymig [k]eeper") }, want: before(onlyTarget)},
	{name: "kill warden", do: func(f *faulty) { f.kill(f.r.l.A, "lazymig [w]arden") }},
	{name: "kill CLI and source", do: func(f *faulty) { f.kill(f.r.l.A, "lazymig [m]igrate"); f.kill(f.r.l.A, "lazymig [s]ource") }, want: before(onlySource)},
	{name: "kill CLI", do: func(f *faulty) { f.kill(f.r.l.A, "lazymig [m]igrate") }},
	{name: "kill agent", do: func(f *faulty) { f.killAgent() }, want: map[string]string{
		"images": onlySource, "restore": onlySource, "grant": "-", "granted": "-",
	}},
	{name: "kill FUSE daemon", do: func(f *faulty) { f.kill(f.r.l.B, "lazymig [f]use-daemon") }, want: map[string]string{"grant": "B", "granted": "B"}},
	{name: "kill handler", do: func(f *faulty) { f.kill(f.r.l.B, "lazymig [h]andler") }},
	{name: "kill CRIU", do: func(f *faulty) { f.kill(f.r.l.B, "[s]bin/criu swrk") }, want: map[string]string{"granted": "-"}},
	{name: "reset connections", do: func(f *faulty) { f.reset() }},
	{name: "blink", do: func(f *faulty) { f.cut(false) }},
	{name: "cut", do: func(f *faulty) { f.cut(true) }},
}

// faulty is one case under way.
type faulty struct {
	r       *rig
	g       *migration
	w       *witness
	noAgent bool
	cutOff  bool
}

func (f *faulty) kill(h *lab.Host, pattern string) { f.r.sh(h, "pkill -KILL -f '"+pattern+"'; true") }

func (f *faulty) killAgent() {
	f.kill(f.r.l.B, "lazymig [a]gent")
	_ = f.r.agents[f.r.l.B].cmd.Wait() // killed
	f.noAgent = true
}

// reset ends all connections between the hosts by a RST to both.
func (f *faulty) reset() { f.r.sh(f.r.l.A, "ss -K dst "+f.r.l.B.Addr+" >/dev/null") }

func (f *faulty) cut(long bool) {
	if err := f.r.l.CutLink(f.r.ctx); err != nil {
		f.r.t.Fatal(err)
	}
	f.cutOff = long
	if !long {
		f.heal()
	}
}

func (f *faulty) heal() {
	if err := f.r.l.RestoreLink(f.r.ctx); err != nil {
		f.r.t.Fatal(err)
	}
}

func TestFaults(t *testing.T) {
	if os.Getenv("LAZYMIG_FAULTS") != "all" {
		t.Log("walked by make test-faults")
		return
	}
	ran, ends := 0, map[string]int{}
	for _, p := range points {
		for _, x := range faults {
			name := p.name + "/" + x.name
			want, own := x.want[p.name]
			if want = cmp.Or(want, p.want); own && want == "-" {
				continue
			}
			t.Run(name, func(t *testing.T) {
				end := oneFault(t, p.name, p.source, x, want)
				t.Logf("%s ended on %s", name, end)
				ran++
				ends[end]++
			})
		}
	}
	var sum []string
	for _, e := range slices.Sorted(maps.Keys(ends)) {
		sum = append(sum, fmt.Sprintf("%d on %s", ends[e], e))
	}
	t.Logf("%d cases ran and ended well: %s", ran, strings.Join(sum, ", "))
}

// oneFault runs one case and returns where the tree was in the end.
func oneFault(t *testing.T, point string, atSource bool, x fault, want string) string {
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	f := &faulty{r: r, w: newWitness(r)}
	park := []string{"LAZYMIG_PARK=" + point + ":" + gate}
	if atSource {
		r.agent(b)
		r.sourceEnv = park
	} else {
		r.agentWith(b, park)
	}
	ch := r.checker(a, 64, 2, witnessIP, fmt.Sprint(f.w.addr.Port))
	r.eventually("witness to hear", func() bool { n, _ := f.w.last(); return n > 10 })
	f.g = r.begin(a, b, ch.proc.Pid)
	parkedAt := a
	if atSource {
		r.eventually("source to be parked", func() bool {
			return strings.Contains(r.sh(a, "cat /var/lib/lazymig/*.log 2>/dev/null; true"), "parked")
		})
	} else {
		parkedAt = b
		r.parked(r.agents[b])
	}
	x.do(f)
	r.sh(parkedAt, "touch "+gate)
	if f.noAgent {
		r.agent(b)
	}
	if f.cutOff {
		r.eventually("source to notice", func() bool {
			log := r.sh(a, "cat /var/lib/lazymig/*.log")
			return strings.Contains(log, "target is lost") || strings.Contains(log, "control connection") || strings.Contains(log, "given up") ||
				strings.Contains(f.g.out.String(), `"failed"`)
		})
		f.heal()
	}
	m := f.g.wait()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := b.Command(context.Background(), "/bin/sh", "-c", "for p in $(pgrep -x checker); do for x in /proc/$p/task/*; do echo $x $(cat $x/wchan) $(cat $x/syscall) $(sed -n 's/^State://p' $x/status); cat $x/stack; done; done; ip route; ip addr; true").CombinedOutput()
			t.Logf("%s", out)
		}
	})
	// Where it runs when all has come to rest: the CLI has ended, one host has the tree, and it makes steps.
	on := ""
	r.eventually("tree to run somewhere", func() bool {
		n, h := f.w.last()
		running := map[string]bool{"A": r.runs(a), "B": r.runs(b)}
		r.eventually("next steps", func() bool { k, _ := f.w.last(); return k > n+20 })
		k, now := f.w.last()
		on = now
		return k > n && h == now && running[now] && (now == "B" || !running["B"])
	})
	if want != "" && on != want {
		t.Errorf("the tree runs on %s, not on %s; migrate ended with %d: %s", on, want, m.code, m.stderr)
	}
	if m.code == 0 && on != "B" || m.code == 4 && on != "A" {
		t.Errorf("migrate ended with %d, but the tree runs on %s: %s", m.code, on, m.stderr)
	}
	h := a
	if on == "B" {
		h = b
	}
	ch.verdict(a, h, r.pid(h))
	f.w.verdict(t)
	r.clean()
	return on
}

// runs says that a checker on h is not frozen or stopped; pid is its PID.
func (r *rig) runs(h *lab.Host) bool {
	r.t.Helper()
	return r.sh(h, "for p in $(pgrep -x checker); do c=$(sed -n 's/^0:://p' /proc/$p/cgroup); grep -q 'frozen 1' /sys/fs/cgroup$c/cgroup.events /sys/fs/cgroup/unified$c/cgroup.events 2>/dev/null || echo $p; done; true") != ""
}

func (r *rig) pid(h *lab.Host) (pid int) {
	r.t.Helper()
	if _, err := fmt.Sscan(r.sh(h, "pgrep -x -n checker; true"), &pid); err != nil {
		r.t.Fatalf("no checker on %s", h.Name)
	}
	return pid
}
