package kerneltest

import (
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long a test's leftovers may take to go away: a killed
// process has to be reaped, a goroutine has to return.
const leakPatience = 60 * time.Second

// Leaks takes a picture of the process now and fails the test at its cleanup if
// something new is still there: a descendant process (or one that runs this
// test's own executable), a descriptor, a goroutine and, under [Main], a mount,
// a cgroup or any process that a descendant started. Call it first, so that its
// check runs after all other cleanups.
func Leaks(t testing.TB) {
	t.Helper()
	primeRuntime(t)
	before := snapshot(t)
	t.Cleanup(func() {
		if t.Failed() && os.Getenv("LAZYMIG_LEAKS_ALWAYS") == "" {
			return // a failed test may leave things behind; its own message matters
		}
		var left []string
		clean := poll(leakPatience, func() bool {
			left = compare(before, snapshot(t))
			return len(left) == 0
		})
		if !clean {
			t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
		}
	})
}

// picture is what [Leaks] compares: for each kind, identity → description.
type picture map[string]map[string]string

func snapshot(t testing.TB) picture {
	t.Helper()
	p := picture{}
	for kind, look := range map[string]func() (map[string]string, error){
		"process":    processes,
		"mount":      mounts,
		"descriptor": descriptors,
		"goroutine":  goroutines,
		"cgroup":     cgroups,
	} {
		seen, err := look()
		if err != nil {
			t.Fatalf("look for leaks: %s: %v", kind, err)
		}
		p[kind] = seen
	}
	return p
}

func compare(before, after picture) []string {
	var left []string
	for kind, seen := range after {
		for id, what := range seen {
			if _, old := before[kind][id]; !old {
				left = append(left, kind+" "+what)
			}
		}
	}
	sort.Strings(left)
	return left
}

// primeRuntime makes the runtime open what it keeps (epoll, its eventfd), so
// that the first test is not blamed.
func primeRuntime(t testing.TB) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.SetReadDeadline(time.Now())
	_, _ = r.Read(make([]byte, 1))
	r.Close()
	w.Close()
}

// descriptors maps "number target" to itself. The directory that is being read
// is left out.
func descriptors() (map[string]string, error) {
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	own := fmt.Sprint(d.Fd())
	seen := map[string]string{}
	for _, n := range names {
		target, err := os.Readlink("/proc/self/fd/" + n)
		if n == own || err != nil {
			continue
		}
		id := n + " " + target
		seen[id] = id
	}
	return seen, nil
}
