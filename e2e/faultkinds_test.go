package e2e

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/lab"
)

// fault is something that happens while a migration is held at a point.
type fault struct {
	name    string
	at      []string           // names of points; nil: all
	whole   bool               // no half leaves one of them out
	want    func(point) string // how it ends
	proxied bool               // the source reaches the agent through a proxy
	streams bool               // standard output is carried
	do      func(f *faulty)
	then    func(f *faulty) // after the point: waits until the fault has had its effect, and mends
}

var faults = slices.Concat(kills, cuts, stalls, shortages, lates, scarcities)

var kills = []fault{
	{name: "nothing", want: ends(onB, nil), do: func(*faulty) {}},
	{name: "kill CLI", want: ends(onA, own(either, "asked", "grant")), do: func(f *faulty) { f.kill(cliPart) }},
	{name: "kill source", want: ends(onA, nil), do: func(f *faulty) { f.kill(sourcePart) }},
	{name: "kill CLI and source", want: ends(onA, nil), do: func(f *faulty) { f.kill(cliPart, sourcePart) }},
	{name: "kill warden", want: ends(either, nil), do: func(f *faulty) { f.kill(wardenPart) }},
	{name: "kill keeper", at: between("prepare", "grant"), want: ends(onB, nil), do: func(f *faulty) { f.kill(keeperPart) }},
	{name: "kill agent", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.kill(agentPart) }},
	{name: "kill starter", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.kill(starterPart) }},
	{name: "kill handler", at: before("left"), want: ends(either, nil), do: func(f *faulty) { f.kill(handlerPart) }},
	{name: "kill guardian", at: before("left"), want: func(p point) string {
		if p.handed && p.name != "granted" && p.name != "letgo" {
			return gone
		}
		return onA // from the grant on with the target's proof that it never ran
	}, do: func(f *faulty) {
		f.kill(guardianPart)
		f.r.eventually("end of the guardian", func() bool { return f.sh(f.r.l.B, "pgrep -f '"+guardianPart.pattern+"'; true") == "" })
	}},
	{name: "kill FUSE daemon", at: before("left"), want: ends(onA, own(onB, "asked", "grant")), do: func(f *faulty) {
		f.kill(fuseDaemonPart)
		f.tookOver()
	}},
	{name: "kill FUSE keeper", at: before("left"), want: ends(either, own(onB, "asked", "grant")), do: func(f *faulty) {
		f.kill(fuseKeeperPart)
		f.tookOver()
	}},
	{name: "kill agent, handler and FUSE daemon", at: between("asked", "switched"), want: ends(onA, own(onB, "grant")), do: func(f *faulty) {
		f.kill(agentPart, handlerPart, fuseDaemonPart)
	}},
	{name: "kill switch", at: between("switch-stopped", "switch-commit"), want: ends(onB, own(gone, "switch-commit")), do: func(f *faulty) { f.kill(switchPart) }},
	{name: "kill carrier", at: between("restore", "drained"), streams: true, want: ends(either, nil), do: func(f *faulty) { f.kill(carrierPart) }},
	{name: "kill CRIU", at: between("prepare", "letgo"), want: func(point) string { return onA }, do: func(f *faulty) {
		if f.p.name == "dump" {
			f.kill(part{true, criuPattern})
		} else {
			f.kill(part{false, criuPattern})
		}
	}},
}

var cuts = []fault{
	{name: "reset", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.sh(f.r.l.A, "ss -K dst "+f.r.l.B.Addr+" >/dev/null") }},
	{name: "blink", want: ends(onB, nil), do: func(f *faulty) { f.link("down"); f.link("up") }},
	{name: "link down", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.link("down") }, then: func(f *faulty) { f.noticed(); f.link("up") }},
	{name: "silence", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.silent(f.r.l.A, f.r.l.B) }, then: func(f *faulty) { f.noticed(); f.loud(f.r.l.A, f.r.l.B) }},
	{name: "silence of A", want: ends(either, own(onB, "grant")), do: func(f *faulty) { f.silent(f.r.l.A) }, then: func(f *faulty) { f.noticed(); f.loud(f.r.l.A) }},
	{name: "silence of B", want: ends(either, own(onB, "grant")), do: func(f *faulty) { f.silent(f.r.l.B) }, then: func(f *faulty) { f.noticed(); f.loud(f.r.l.B) }},
	{name: "A's messages lost", proxied: true, want: ends(either, own(onB, "grant")), do: func(f *faulty) { f.proxy.loseFrom(0) }, then: lost},
	{name: "B's messages lost", proxied: true, want: ends(either, own(onB, "grant")), do: func(f *faulty) { f.proxy.loseFrom(1) }, then: lost},
	{name: "reconnect before the end", proxied: true, want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.late = f.proxy.late() }, then: func(f *faulty) {
		f.until("the next connection", f.late)
	}},
}

// tookOver waits for the next FUSE daemon where the switch would go on without.
func (f *faulty) tookOver() {
	if strings.HasPrefix(f.p.name, "switch-") {
		f.says("another has taken over")
	}
}

// lost waits until messages were lost for sure: pings are among them.
func lost(f *faulty) {
	f.until("messages to be lost", func() bool { return f.proxy.loseEnd(3) })
	f.proxy.loseEnd(0)
}

var stalls = []fault{
	{name: "stall of the network", proxied: true, want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.proxy.stall() }, then: func(f *faulty) { f.noticed(); f.proxy.goOn() }},
	{name: "stall of the agent", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.signal("STOP", agentPart) }, then: func(f *faulty) { f.noticed(); f.signal("CONT", agentPart) }},
	{name: "stall of the source", want: ends(either, own(onB, "grant")), do: func(f *faulty) { f.signal("STOP", sourcePart) }, then: func(f *faulty) { f.noticed(); f.signal("CONT", sourcePart) }},
	// nobody need notice these: what needs the part waits
	{name: "stall of the FUSE daemon", at: before("left"), proxied: true, want: ends(either, nil), do: func(f *faulty) { f.signal("STOP", fuseDaemonPart) }, then: func(f *faulty) { f.wakes(fuseDaemonPart) }},
	{name: "stall of the handler", at: before("left"), proxied: true, want: ends(either, nil), do: func(f *faulty) { f.signal("STOP", handlerPart) }, then: func(f *faulty) { f.wakes(handlerPart) }},
	{name: "stall of the guardian", at: before("left"), proxied: true, want: ends(either, own(either, "granted", "letgo")), do: func(f *faulty) { f.signal("STOP", guardianPart) }, then: func(f *faulty) { f.wakes(guardianPart) }},
}

// wakes lets a part that was stopped go on, unless it has been killed meanwhile, when the sides have talked for a while or the migration is over.
func (f *faulty) wakes(p part) {
	f.r.t.Helper()
	talked := f.proxy.talk()
	f.until("the sides to talk", func() bool { return f.over() || talked() })
	f.sh(f.host(p), "pkill -CONT -f '"+p.pattern+"'; true")
}

var shortages = []fault{
	{name: "no room for A's records", want: ends(either, nil), do: func(f *faulty) { f.full(f.r.l.A, "/var/lib/lazymig") }, then: func(f *faulty) {
		f.says("no space left on device")
		f.roomy(f.r.l.A, "/var/lib/lazymig")
	}},
	// later the tree itself may get the error, as it would without lazymig: it lives on that disk as soon as it goes on
	{name: "no room for B's records and files", at: before("switch-stopped"), want: ends(either, nil), do: func(f *faulty) { f.full(f.r.l.B, "/var/lib/lazymig") }, then: func(f *faulty) {
		f.says("no space left on device")
		f.roomy(f.r.l.B, "/var/lib/lazymig")
	}},
	{name: "no room for images", at: at("prepare", "dump", "frozen", "images"), want: ends(onA, nil), do: func(f *faulty) { f.full(f.r.l.B, "/run") }, then: func(f *faulty) {
		f.says("no space left on device")
		f.roomy(f.r.l.B, "/run")
	}},
	{name: "agent without descriptors, reset", want: ends(onA, own(onB, "grant")), do: func(f *faulty) { f.fewFiles(agentPart); f.sh(f.r.l.A, "ss -K dst "+f.r.l.B.Addr+" >/dev/null") }, then: func(f *faulty) {
		f.says("too many open files")
		f.manyFiles(agentPart)
	}},
	{name: "source without descriptors, reset", want: ends(onA, nil), do: func(f *faulty) { f.fewFiles(sourcePart); f.sh(f.r.l.A, "ss -K dst "+f.r.l.B.Addr+" >/dev/null") }, then: func(f *faulty) {
		f.says("too many open files")
		f.manyFiles(sourcePart)
	}},
	{name: "FUSE daemon without descriptors, reset", at: before("left"), proxied: true, want: ends(onA, own(onB, "grant")), do: func(f *faulty) {
		f.fewFiles(fuseDaemonPart)
		f.sh(f.r.l.A, "ss -K dst "+f.r.l.B.Addr+" >/dev/null")
	}, then: func(f *faulty) {
		talked := f.proxy.talk()
		f.until("the sides to talk", func() bool { return f.over() || talked() })
		f.manyFiles(fuseDaemonPart)
	}},
	{name: "no memory for the tree", at: at("letgo", "resumed", "drain"), want: ends(onB, nil), do: func(f *faulty) { f.scarce() }, then: func(f *faulty) {
		f.says("cannot allocate memory")
		f.plenty()
	}},
}

// part is a process of lazymig.
type part struct {
	a       bool   // on A, else on B
	pattern string // of its command line
}

var (
	cliPart        = part{true, "lazymig [m]igrate"}
	sourcePart     = part{true, "lazymig [s]ource"}
	wardenPart     = part{true, "lazymig [w]arden"}
	keeperPart     = part{true, "lazymig [k]eeper"}
	agentPart      = part{false, "lazymig [a]gent"}
	starterPart    = part{false, "lazymig [s]tarter"} // with which the agent ends
	handlerPart    = part{false, "lazymig [h]andler"}
	guardianPart   = part{false, "lazymig [g]uardian"}
	fuseDaemonPart = part{false, "lazymig [f]use-daemon"}
	fuseKeeperPart = part{false, "lazymig [f]use-keeper"}
	carrierPart    = part{false, "lazymig [c]arrier"}
	switchPart     = part{false, "lazymig [s]witch"}
)

const criuPattern = "[s]bin/criu swrk|[c]riu: (dump|restore)"

func (f *faulty) host(p part) *lab.Host {
	if p.a {
		return f.r.l.A
	}
	return f.r.l.B
}

// signal signals a part, which must be there.
func (f *faulty) signal(sig string, p part) {
	f.r.t.Helper()
	f.r.eventually(p.pattern+" to be there", func() bool { // a handler may just be between two
		return f.sh(f.host(p), "pkill -"+sig+" -f '"+p.pattern+"' && echo hit; true") == "hit"
	})
}

// kill kills parts by kill -9, all that are on one host at once.
func (f *faulty) kill(all ...part) {
	f.r.t.Helper()
	patterns := make([]string, len(all))
	for i, p := range all {
		patterns[i] = p.pattern
	}
	f.signal("KILL", part{all[0].a, strings.Join(patterns, "|")})
	f.noAgent = f.noAgent || slices.Contains(all, agentPart) || slices.Contains(all, starterPart)
}

func (f *faulty) sh(h *lab.Host, script string) string { f.r.t.Helper(); return f.r.sh(h, script) }

func (f *faulty) link(how string) {
	f.r.t.Helper()
	change := f.r.l.CutLink
	if how == "up" {
		change = f.r.l.RestoreLink
	}
	if err := change(f.r.ctx); err != nil {
		f.r.t.Fatal(err)
	}
}

// silent throws away all that a host sends to the other; no packet, and no error, tells either.
func (f *faulty) silent(all ...*lab.Host) {
	for _, h := range all {
		f.sh(h, "tc qdisc replace dev eth0 root pfifo limit 0")
	}
}

func (f *faulty) loud(all ...*lab.Host) {
	for _, h := range all {
		f.sh(h, "tc qdisc del dev eth0 root")
	}
}

// full leaves no room in a tmpfs, roomy gives it back.
func (f *faulty) full(h *lab.Host, dir string) {
	// what is written meanwhile may have left more than the new size
	f.sh(h, "for i in $(seq 100); do mount -o remount,size=$(($(df -k --output=used "+dir+" | tail -n 1)))k "+dir+" 2>/dev/null && exit; done; exit 1")
}

func (f *faulty) roomy(h *lab.Host, dir string) { f.sh(h, "mount -o remount,size=4g "+dir) }

// fewFiles lets a part open no more files, manyFiles takes that back.
func (f *faulty) fewFiles(p part) { f.limit(p, "3") }

func (f *faulty) manyFiles(p part) { f.limit(p, "$(prlimit --pid $p --nofile -o HARD --noheadings)") }

func (f *faulty) limit(p part, n string) {
	f.sh(f.host(p), "for p in $(pgrep -f '"+p.pattern+"'); do prlimit --pid $p --nofile="+n+": || test ! -d /proc/$p; done")
}

// over says whether the command has ended.
func (f *faulty) over() bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, f.g.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// quiet says that nobody serves the tree on A any more.
func (f *faulty) quiet() bool {
	return f.over() && f.sh(f.r.l.A, "pgrep -f '"+sourcePart.pattern+"'; true") == ""
}

// logs are what all of lazymig has said since the fault.
func (f *faulty) logs() string {
	a := f.sh(f.r.l.A, "cat /var/lib/lazymig/*.log 2>/dev/null; true")
	b := f.agent.log.String()
	return a[min(len(a), f.saidA):] + b[min(len(b), f.saidB):] + f.g.out.String()
}

func (f *faulty) until(what string, cond func() bool) {
	f.r.t.Helper()
	f.r.eventually(what+" ("+f.p.name+", "+f.x.name+")", func() bool { return cond() || f.quiet() })
}

// says waits until a part has met an error, or the migration is over without.
func (f *faulty) says(text string) {
	f.r.t.Helper()
	f.until("somebody to say: "+text, func() bool { return f.over() || strings.Contains(f.logs(), text) })
}

// noticed waits until a side misses the other.
func (f *faulty) noticed() {
	f.r.t.Helper()
	f.until("a side to miss the other", func() bool {
		log := f.logs()
		return slices.ContainsFunc([]string{"target is lost", "source is lost", "source has ended", "control connection", "given up"}, func(s string) bool { return strings.Contains(log, s) })
	})
}
