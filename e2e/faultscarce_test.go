package e2e

// scarcities are parts that get nothing more of what the kernel gives, when they need it: they dial, are replaced, or replace.
var scarcities = []fault{
	{name: "handler without descriptors, reset", at: before("left"), proxied: true, want: ends(onA, own(onB, "grant")), do: func(f *faulty) {
		f.fewFiles(handlerPart)
		f.resetAll()
	}, then: func(f *faulty) { f.talks(); f.manyFiles(handlerPart) }},
	{name: "guardian without descriptors, kill handler", at: before("left"), proxied: true, want: ends(either, nil), do: func(f *faulty) {
		f.fewFiles(guardianPart)
		f.kill(handlerPart)
	}, then: func(f *faulty) { f.talks(); f.manyFiles(guardianPart) }},
	{name: "handler without memory, reset", at: thin(handlerPart), proxied: true, want: ends(onA, own(onB, "grant")), do: func(f *faulty) {
		f.noMemory(handlerPart)
		f.resetAll()
	}, then: func(f *faulty) { f.talks(); f.allMemory(handlerPart) }},
	{name: "FUSE daemon without memory, reset", at: thin(fuseDaemonPart), proxied: true, want: ends(onA, own(onB, "grant")), do: func(f *faulty) {
		f.noMemory(fuseDaemonPart)
		f.resetAll()
	}, then: func(f *faulty) { f.talks(); f.allMemory(fuseDaemonPart) }},
	{name: "source without memory, reset", at: thin(sourcePart), want: ends(onA, own(either, "grant")), do: func(f *faulty) { // its file server is in it
		f.noMemory(sourcePart)
		f.resetAll()
	}, then: func(f *faulty) { f.allMemory(sourcePart) }},
}

// thin are points at which a part dies of a lack of memory, or not: each takes it another way on.
func thin(p part) []string {
	if p == sourcePart {
		return at("dump", "frozen", "grant", "granted", "hold", "drained", "files", "left")
	}
	return at("restore", "asked", "grant", "letgo", "resumed", "drain", "files", "detach")
}

// talks waits until the sides have talked for a while, or the migration is over.
func (f *faulty) talks() {
	f.r.t.Helper()
	talked := f.proxy.talk()
	f.until("the sides to talk", func() bool { return f.over() || talked() })
}

func (f *faulty) resetAll() { f.r.t.Helper(); f.sh(f.r.l.A, "ss -K dst "+f.r.l.B.Addr+" >/dev/null") }

// noMemory lets a part map nothing more: its heap does not grow, and its runtime ends it when it must. allMemory takes that back, also from those that have come
// after it and have it from whoever started them.
func (f *faulty) noMemory(p part) { f.space(p, "4096") }

func (f *faulty) allMemory(p part) { f.space(p, "unlimited") }

func (f *faulty) space(p part, n string) {
	f.r.t.Helper()
	f.sh(f.host(p), "for p in $(pgrep -f '"+p.pattern+"'); do prlimit --pid $p --as="+n+": || test ! -d /proc/$p; done")
}
