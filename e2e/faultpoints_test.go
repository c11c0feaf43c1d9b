package e2e

import "slices"

// point is where a migration is held (package internal/park).
type point struct {
	name   string
	source bool // the source's part stands there, else the agent or the switch
	handed bool // the grant is on disk
	leaves bool // the tree shall leave the source's files, which are removed there
	mode   string
}

// points are in the order in which a migration comes by.
var points = []point{
	{name: "prepare"}, // all of the target is there
	{name: "ahead", source: true, mode: "hybrid"}, // the tree runs; some of its memory has been copied ahead, and its writes are tracked
	{name: "dump", source: true},                  // frozen, CRIU is about to begin
	{name: "frozen", source: true},                // the images are there
	{name: "images"},                              // the first of them has come
	{name: "restore"},                             // all of them; CRIU is about to begin
	{name: "asked"},                               // restored and held; the question is on disk
	{name: "grant", source: true},                 // asked, and nothing is on disk
	{name: "granted", source: true, handed: true}, // on disk, not sent
	{name: "letgo", handed: true},                 // come, and on disk
	{name: "resumed", handed: true},               // runs; not on disk, the source does not know
	{name: "drain", handed: true},                 // the source knows
	{name: "full", handed: true},                  // all memory is there; not on disk, the source does not know
	{name: "hold", source: true, handed: true},    // copies of descriptors are kept, the frozen tree is to be killed
	{name: "drained", source: true, handed: true}, // killed, not on disk

	{name: "files", handed: true, leaves: true},          // files come
	{name: "detach", handed: true, leaves: true},         // they are there
	{name: "switch-stopped", handed: true, leaves: true}, // so is the tree, and each thread is stopped
	{name: "switch-settled", handed: true, leaves: true}, // what was written last has come
	{name: "switch-commit", handed: true, leaves: true},  // all is prepared; from here on the tree is put on its files, or dies
	{name: "switched", handed: true, leaves: true},       // it is; helpers are there, the source's files, too, and nothing is on disk
	{name: "left", handed: true, leaves: true},           // helpers are gone, files removed; not on disk, the source does not know
}

// between are the points from first to last.
func between(first, last string) []string {
	at := func(name string) int { return slices.IndexFunc(points, func(p point) bool { return p.name == name }) }
	var names []string
	for _, p := range points[at(first) : at(last)+1] {
		names = append(names, p.name)
	}
	return names
}

func at(names ...string) []string { return names }

// before are the points that come before one.
func before(name string) []string {
	all := between(points[0].name, name)
	return all[:len(all)-1]
}

// Ends of a case: where the tree runs.
const (
	onA    = "A"
	onB    = "B"
	either = "A or B"
	gone   = "gone" // the capsule was ended on purpose
)

// ends says how a case must end: want before the grant, and B after it, unless a point has its own.
func ends(want string, own map[string]string) func(point) string {
	return func(p point) string {
		switch w, ok := own[p.name]; {
		case ok:
			return w
		case p.handed:
			return onB
		}
		return want
	}
}

func own(want string, names ...string) map[string]string {
	m := map[string]string{}
	for _, n := range names {
		m[n] = want
	}
	return m
}
