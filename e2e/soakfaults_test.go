package e2e

import (
	"time"

	"github.com/lazymig/lazymig/lab"
)

// soakFault is something that happens in a move, and is over when do returns.
type soakFault struct {
	name string
	all  bool // at the grant, where the source's part waits for it; somebody has to recover then
	do   func(s *soak, from, to *lab.Host)
}

// soakMoments are the events after which it happens.
var soakMoments = []string{"prepared", "frozen", "resumed", "drained", "files"}

var soakFaults = []soakFault{
	{name: "kill source", do: kills9("source", true)},
	{name: "kill warden", do: kills9("warden", true)},
	{name: "kill CLI", do: kills9("migrate", true)},
	{name: "kill keeper", do: kills9("keeper", true)},
	{name: "kill handler", do: kills9("handler", false)},
	{name: "kill FUSE daemon", do: kills9("fuse-daemon", false)},
	{name: "kill FUSE keeper", do: kills9("fuse-keeper", false)},
	{name: "kill agent", do: func(s *soak, _, to *lab.Host) {
		if to == s.r.l.A {
			return // its memory is watched
		}
		s.r.killAgent(s.r.agents[to])
		pause(s.some(time.Second))
		s.r.agent(to)
	}},
	{name: "kill source and warden", all: true, do: func(s *soak, from, _ *lab.Host) { s.r.killSide(from) }},
	{name: "reset", do: func(s *soak, from, to *lab.Host) { s.r.sh(from, "ss -K dst "+to.Addr+" >/dev/null") }},
	{name: "link down", do: func(s *soak, _, _ *lab.Host) {
		s.check(s.r.l.CutLink(s.r.ctx))
		pause(s.some(3 * time.Second))
		s.check(s.r.l.RestoreLink(s.r.ctx))
	}},
	{name: "silence", do: func(s *soak, from, _ *lab.Host) {
		s.r.sh(from, "tc qdisc replace dev eth0 root pfifo limit 0")
		pause(s.some(8 * time.Second)) // more than either side takes to miss the other
		s.r.sh(from, "tc qdisc del dev eth0 root")
	}},
	{name: "source stands still", do: func(s *soak, from, _ *lab.Host) {
		s.r.sh(from, "pkill -STOP -f 'lazymig [s]ource'; true")
		pause(s.some(2 * time.Second))
		s.r.sh(from, "pkill -CONT -f 'lazymig [s]ource'; true")
	}},
}

// kills9 kills a part on one of the hosts; it may have ended.
func kills9(part string, source bool) func(*soak, *lab.Host, *lab.Host) {
	return func(s *soak, from, to *lab.Host) {
		h := to
		if source {
			h = from
		}
		s.r.sh(h, "pkill -KILL -f 'lazymig ["+part[:1]+"]"+part[1:]+"'; true")
	}
}

func (s *soak) some(most time.Duration) time.Duration {
	return time.Duration(s.rng.Int64N(int64(most)))
}

func (s *soak) check(err error) {
	s.r.t.Helper()
	if err != nil {
		s.r.t.Fatal(err)
	}
}
