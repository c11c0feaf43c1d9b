package migrate

import (
	"fmt"
	"strings"
	"testing"
)

// violated says which promise a step breaks, or the state that it leads to; "" is none.
func violated(from, to state, fault bool) string {
	switch {
	case to.sran && to.tran:
		return "two runners: the tree has run on both hosts since it was dumped"
	case to.tran && !from.tran && from.sd != Granted:
		return "the target lets go of a tree whose grant is not on the source's disk"
	case to.tran && !from.tran && from.td != Granted:
		return "the target lets go of a tree whose grant is not on its own disk"
	case from.tree != treeRuns && to.tree == treeRuns && !fault && (from.sd == Granted || from.sc == Granted):
		return "the source runs a tree again that its record gives away"
	case to.tree == treeKilled && from.tree != treeKilled && !to.tran:
		return "the source kills a tree that never ran on the target"
	case to.sp == sResume && from.sp == sServe && to.cap != capNone:
		return "the source takes back a tree that the target still has"
	}
	return ""
}

// alive says that in s the tree has not been lost for good, so that somebody must be able to run it in the end. Lost is it when the source's
// host has crashed, and when after the grant its capsule is gone or the target's state directory was lost: then only an operator can know
// (recover --resume-source --i-know-the-target-is-dead).
func alive(s state) bool {
	granted := s.tc == Granted || s.tc == Resumed || s.tc == LostTree || s.tc == Ended || s.tc == ""
	return s.tree != treeLost && (s.cap != capNone || !granted)
}

// node is one state that has been reached, and how.
type node struct {
	s    state
	from int
	step string
}

// explore walks all states breadth first, so that the trace of the first violation is a shortest one. It returns the nodes, the steps
// without faults backwards, and the violation.
func explore(b broken, most int) (nodes []node, back [][]int32, bad string) {
	seen := map[state]int32{begin(): 0}
	nodes = []node{{begin(), -1, "the tree is frozen, its images are restored on the target"}}
	back = [][]int32{nil}
	for i := 0; i < len(nodes); i++ {
		from := nodes[i].s
		for _, e := range b.steps(from) {
			j, ok := seen[e.to]
			if !ok {
				j = int32(len(nodes))
				seen[e.to] = j
				nodes = append(nodes, node{e.to, i, e.what})
				back = append(back, nil)
			}
			if why := violated(from, e.to, e.fault); why != "" {
				return append(nodes, node{e.to, i, e.what}), back, why
			}
			if !e.fault {
				back[j] = append(back[j], int32(i))
			}
		}
		if len(nodes) > most {
			return nodes, back, fmt.Sprintf("more than %d states", most)
		}
	}
	return nodes, back, ""
}

// stuck finds a state out of which no steps without faults lead to one that runs the tree; -1: there is none.
func stuck(nodes []node, back [][]int32) int {
	good := make([]bool, len(nodes))
	var todo []int32
	for i, n := range nodes {
		if n.s.tree == treeRuns || n.s.cap == capRuns {
			good[i] = true
			todo = append(todo, int32(i))
		}
	}
	for len(todo) > 0 {
		i := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, j := range back[i] {
			if !good[j] {
				good[j] = true
				todo = append(todo, j)
			}
		}
	}
	for i, n := range nodes { // in the order of their distance
		if !good[i] && alive(n.s) {
			return i
		}
	}
	return -1
}

// trace tells how a node was reached.
func trace(nodes []node, i int) string {
	var steps []string
	for ; i >= 0; i = nodes[i].from {
		steps = append([]string{nodes[i].step}, steps...)
	}
	return strings.Join(steps, "\n  ")
}

const mostStates = 4_000_000

// TestCommitModel: in no order of crashes, restarts and lost, repeated or late messages does the tree run on both hosts, or on none for ever.
func TestCommitModel(t *testing.T) {
	nodes, back, bad := explore(broken{}, mostStates)
	if bad != "" {
		t.Fatalf("%s:\n  %s", bad, trace(nodes, len(nodes)-1))
	}
	if i := stuck(nodes, back); i >= 0 {
		t.Fatalf("nobody runs the tree, and nobody will:\n  %s\n%+v", trace(nodes, i), nodes[i].s)
	}
	steps := 0
	both := [2]bool{}
	for i, n := range nodes {
		steps += len(back[i])
		both[0] = both[0] || n.s.sran
		both[1] = both[1] || n.s.tran
	}
	if !both[0] || !both[1] {
		t.Errorf("the model never ran the tree on source, target: %v", both)
	}
	t.Logf("%d states, %d steps without faults", len(nodes), steps)
}

// TestCommitModelBroken: the model sees each of these mistakes. Without that its silence would prove nothing.
func TestCommitModelBroken(t *testing.T) {
	for name, b := range map[string]broken{
		"grant not fsynced":                 {noFsync: true},
		"keeper does not read the record":   {blindKeeper: true},
		"target lets go by a timeout":       {impatient: true},
		"empty state directory is proof":    {emptyIsProof: true},
		"failed grant left in the record":   {noRetract: true},
		"thawed tree granted":               {grantsThawed: true},
		"tree that is gone counts as ended": {goneIsEnded: true},
		"recover trusts the page cache":     {cachedRecover: true},
	} {
		t.Run(name, func(t *testing.T) {
			nodes, _, bad := explore(b, mostStates)
			if bad == "" {
				t.Fatalf("not noticed in %d states", len(nodes))
			}
			t.Logf("%s:\n  %s", bad, trace(nodes, len(nodes)-1))
		})
	}
}
