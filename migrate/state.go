package migrate

import (
	"fmt"
	"slices"
)

// State is where a migration stands. The same words on both sides; see the package doc.
type State string

// The states.
const (
	Prepare  State = "prepare"
	Frozen   State = "frozen"
	Asked    State = "asked" // target: restored and held
	Granted  State = "granted"
	Resumed  State = "resumed" // the tree runs on the target; pages follow
	Drained  State = "drained"
	Detached State = "detached" // the tree has all of its own; nothing of lazymig follows
	Ended    State = "ended"
	Aborted  State = "aborted"
	LostTree State = "lost" // after the grant, and the tree can't run any more; never silent
)

// next lists what may follow what; a record with anything else is refused.
var next = map[State][]State{
	"":       {Prepare},
	Prepare:  {Frozen, Aborted},
	Frozen:   {Asked, Granted, Aborted}, // the source has no asked
	Asked:    {Granted, Aborted},
	Granted:  {Resumed, Drained, Detached, LostTree, Ended}, // a state that could not be recorded is passed over
	Resumed:  {Drained, Detached, LostTree, Ended},
	Drained:  {Detached, Ended, LostTree},
	Detached: {Ended},
}

// Final says that nothing follows but, on the target, the end of a tree that is detached.
func (s State) Final() bool {
	return s == Detached || s == Ended || s == Aborted || s == LostTree
}

// Handed says that the grant has been given: the source may never run the tree again.
func (s State) Handed() bool {
	return s == Granted || s == Resumed || s == Drained || s == Detached || s == Ended || s == LostTree
}

func (s State) to(n State) error {
	if slices.Contains(next[s], n) {
		return nil
	}
	return fmt.Errorf("state %q can't be followed by %q", s, n)
}
