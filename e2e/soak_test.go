package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lazymig/lazymig/lab"
)

// soak moves one checker back and forth, with faults at random, and counts after each move what is there.
type soak struct {
	r     *rig
	w     *witness
	rng   *rand.Rand
	on    *lab.Host
	local []string
	seen  map[string]bool // IDs of moves that are over

	faults []soakFault

	base  map[string]counts // by the host that the tree is on
	rss   []int             // of A's agent, which is never killed, in KB
	ended map[string]int
}

// counts is what must not grow.
type counts struct{ Processes, Mounts, Cgroups, Directories, Files int }

// soakMoves is how many moves are made unless LAZYMIG_SOAK says another number. LAZYMIG_SEED is the seed of a run that is to be made again, LAZYMIG_SOAK_FAULT the
// only fault.
const soakMoves = 2

// soakTime ends a run that has hung.
const soakTime = 20 * time.Minute

func TestSoak(t *testing.T) {
	number := func(env string, other uint64) uint64 {
		if n, err := strconv.ParseUint(os.Getenv(env), 10, 64); err == nil {
			return n
		}
		return other
	}
	moves := int(number("LAZYMIG_SOAK", soakMoves))
	seed := number("LAZYMIG_SEED", 1)
	if moves != soakMoves && os.Getenv("LAZYMIG_SEED") == "" {
		seed = rand.Uint64()
	}
	t.Logf("%d moves, seed %d", moves, seed)
	r := newHosts(t, "checker")
	a, b := r.l.A, r.l.B
	if moves > soakMoves {
		ctx, cancel := context.WithTimeout(t.Context(), soakTime)
		defer cancel()
		r.ctx = ctx
	}
	r.agent(a)
	r.agent(b)
	s := &soak{r: r, w: newWitness(r), rng: rand.New(rand.NewPCG(seed, 0)), on: a, seen: map[string]bool{}, base: map[string]counts{}, ended: map[string]int{}} //nolint:gosec // to be repeated
	for _, f := range soakFaults {
		if only := os.Getenv("LAZYMIG_SOAK_FAULT"); only == "" || only == f.name {
			s.faults = append(s.faults, f)
		}
	}
	r.sh(a, "mkdir /srv/bin; cp "+r.dir+"/checker /srv/bin")
	s.local = r.locals(a, b)
	r.spawn(a, "/srv/bin/checker", "16", "2", "/srv/status", witnessIP, strconv.Itoa(s.w.addr.Port))
	r.eventually("witness to hear", func() bool { n, _ := s.w.last(); return n > 10 })
	began := time.Now()
	for done := 0; done < moves; {
		if s.move(done) {
			done++
		}
		s.w.verdict(t)
		if t.Failed() {
			t.Fatalf("after %d moves of seed %d", done, seed)
		}
	}
	n, _ := s.w.last()
	t.Logf("%d moves in %.0f s, %d steps, each made once; longest pause of them %d ms", moves, time.Since(began).Seconds(), n, s.w.longest().Milliseconds())
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range s.ended {
			if !yield(k) {
				return
			}
		}
	}) {
		t.Logf("%3d × %s", s.ended[k], k)
	}
	s.flat()
	r.sh(s.on, "pkill -TERM -x checker")
	r.eventually("end of the tree", func() bool { return s.runners(s.on) == 0 })
	r.clean()
}

// move makes one move with a fault, or without; false: the tree stays where it was, as it may before the handover.
func (s *soak) move(n int) bool {
	r, from, to := s.r, s.on, s.r.l.B
	r.t.Helper()
	if from == to {
		to = r.l.A
	}
	f := soakFault{name: "nothing"}
	if n < soakMoves || s.rng.IntN(3) > 0 {
		f = s.faults[s.rng.IntN(len(s.faults))]
	}
	when := soakMoments[s.rng.IntN(len(soakMoments))]
	after := time.Duration(s.rng.IntN(200)) * time.Millisecond
	pid, _ := strconv.Atoi(r.sh(from, "pgrep -x checker"))
	if f.all {
		when = "granted"
		r.sourceEnv = []string{"LAZYMIG_PARK=granted:" + gate}
		defer func() { r.sourceEnv = nil }()
	}
	s.w.allow(to.Name)
	step, _ := s.w.last()
	g := r.begin(from, to, pid, append([]string{"--until", "detached"}, s.local...)...)
	if f.do != nil {
		over := make(chan struct{})
		res := make(chan *moved, 1)
		go func() { res <- g.wait(); close(over) }()
		r.eventually("moment "+when, func() bool {
			select {
			case <-over:
				return true
			default:
			}
			if f.all {
				id, _, _ := s.states(from, to)
				return id != "" && r.sh(from, "grep -s parked /var/lib/lazymig/"+id+".log; true") != ""
			}
			return strings.Contains(g.out.String(), `"event":"`+when+`"`)
		})
		pause(after)
		f.do(s, from, to)
		s.settle(f, from, to)
		<-over
		s.say(n, f, when, after, <-res, to)
	} else {
		m := g.wait()
		s.settle(f, from, to)
		s.say(n, f, "", 0, m, to)
	}
	s.w.allow("")
	r.eventually("checker to make steps", func() bool { k, on := s.w.last(); return k > step+20 && on == s.on.Name })
	s.count()
	return s.on == to
}

// pause is a random moment's, not a wait.
func pause(d time.Duration) { <-time.After(d) }

func (s *soak) say(n int, f soakFault, when string, after time.Duration, m *moved, to *lab.Host) {
	end := "moved"
	if s.on != to {
		end = "stays where it was"
	}
	s.ended[f.name+": "+end]++
	s.r.t.Logf("move %d to %s: %s (%s + %d ms): %s, %d", n+1, to.Name, f.name, when, after.Milliseconds(), end, m.code)
	if m.code == 0 && s.on != to || m.code == 4 && s.on == to || f.do == nil && m.code != 0 {
		s.r.t.Errorf("migrate ended with %d: %s", m.code, m.stderr)
	}
}

// states tells where the move stands that is not known to be over; empty: there is no record.
func (s *soak) states(from, to *lab.Host) (id, source, target string) {
	s.r.t.Helper()
	for h, at := range map[*lab.Host]*string{from: &source, to: &target} {
		for line := range strings.Lines(s.r.sh(h, s.r.lazymig+" list --json")) {
			var x struct{ ID, Side, State string }
			if err := json.Unmarshal([]byte(line), &x); err != nil {
				s.r.t.Fatalf("list says %q: %v", line, err)
			}
			if !s.seen[x.ID] && (x.Side == "source") == (h == from) {
				id, *at = x.ID, x.State
			}
		}
	}
	return id, source, target
}

// settle waits until both hosts have come to the same end, and looks who runs the tree.
func (s *soak) settle(f soakFault, from, to *lab.Host) {
	r := s.r
	r.t.Helper()
	var rec *recovering
	var id, source, target string
	r.eventually("both hosts to come to an end after "+f.name, func() bool {
		id, source, target = s.states(from, to)
		if f.all && rec == nil && (source == "granted" || source == "resumed" || source == "drained") {
			rec = r.recoverOn(from, id)
		}
		over := func(state string) bool { return state == "" || state == "aborted" }
		return source == "detached" && target == "detached" || over(source) && over(target) && r.sh(from, "pgrep -f 'lazymig [s]ource|lazymig [w]arden'; true") == ""
	})
	if rec != nil {
		rec.over()
	}
	if s.seen[id] = true; target == "detached" {
		s.on = to
	}
	r.eventually("exactly one to run", func() bool { return s.runners(s.on) == 1 && s.runners(from)+s.runners(to) == 1 })
}

func (s *soak) runners(h *lab.Host) int {
	s.r.t.Helper()
	return len(strings.Fields(s.r.sh(h, "pgrep -x checker; true")))
}

// look counts on both hosts. A host sees the machine's cgroups: those of its own migrations count.
func (s *soak) look() (c counts) {
	r := s.r
	for _, h := range []*lab.Host{r.l.A, r.l.B} {
		var n counts
		out := r.sh(h, `p=$(pgrep -f 'lazymig [a]gent')
echo $(ps -eo comm= | grep -c -e '^lazymig' -e '^criu') $(wc -l </proc/mounts) \
$(for i in $(ls -d /var/lib/lazymig/*.source /var/lib/lazymig/*.target 2>/dev/null | sed 's,.*/\(........\).*,\1,' | sort -u); do find /sys/fs/cgroup -type d -name "lazymig-$i*" 2>/dev/null || true; done | wc -l) \
$(ls -d /run/lazymig-* /dev/shm/lazymig-* 2>/dev/null | grep -vc /run/lazymig-lab) $(ls /proc/$p/fd | wc -l)`)
		if _, err := fmt.Sscan(out, &n.Processes, &n.Mounts, &n.Cgroups, &n.Directories, &n.Files); err != nil {
			r.t.Fatalf("count on %s: %v: %s", h.Name, err, out)
		}
		c.Processes, c.Mounts, c.Cgroups = c.Processes+n.Processes, c.Mounts+n.Mounts, c.Cgroups+n.Cgroups
		c.Directories, c.Files = c.Directories+n.Directories, c.Files+n.Files
	}
	return c
}

// fewFiles is how many descriptors more than at first the agents may have: what their runtime opens late.
const fewFiles = 8

// count demands that no more is there than after the first move to this host.
func (s *soak) count() {
	r := s.r
	r.t.Helper()
	if rss, err := strconv.Atoi(r.sh(r.l.A, "awk '/^VmRSS/{print $2}' /proc/$(pgrep -f 'lazymig [a]gent')/status")); err == nil {
		s.rss = append(s.rss, rss)
	}
	base, ok := s.base[s.on.Name]
	if !ok {
		r.eventually("helpers to end", func() bool { base = s.look(); return base.Processes == 2 })
		s.base[s.on.Name] = base
		return
	}
	var now counts
	defer func() {
		if r.t.Failed() {
			r.t.Logf("%+v, at first %+v", now, base)
		}
	}()
	r.eventually("what the move needed to go away", func() bool {
		now = s.look()
		few := now.Files <= base.Files+fewFiles
		same := now
		same.Files = base.Files
		return few && same == base
	})
}

// flat demands that A's agent does not grow.
func (s *soak) flat() {
	n := len(s.rss)
	s.r.t.Logf("counts: %+v; memory of A's agent, KB: %v", s.base, s.rss)
	if n < 40 {
		return // it warms up
	}
	mean := func(l []int) (m int) {
		for _, x := range l {
			m += x
		}
		return m / len(l)
	}
	if was, is := mean(s.rss[n/4:n/2]), mean(s.rss[3*n/4:]); is > was+8<<10 {
		s.r.t.Errorf("A's agent grows: %d KB in the second quarter, %d KB in the last", was, is)
	}
}
