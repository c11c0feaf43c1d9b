//go:build seeded

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// seeds are bugs that a build tag puts into lazymig, and what has to catch each.
var seeds = []struct {
	tag, what string
	pkg, run  string
	says      *regexp.Regexp
}{
	{"seeded_uffd", "userfaultfds are closed early", "./e2e", `^TestFaults$/^cases$/^drain:(nothing|kill_handler)$`, regexp.MustCompile(wrongPage.String() + `|the tree is dead|the tree died without its last word`)},
	{"seeded_enoent", "ENOENT is taken as gone", "./e2e", `^TestFaults$/^cases$/^(resumed|drain):(nothing|kill_handler|reset)$`, wrongPage},
	{"seeded_remove", "a REMOVE event is lost", "./e2e", `^TestFaults$/^cases$/^(resumed|drain):(nothing|kill_handler|reset)$`, wrongPage},
	{"seeded_append", "an append is repeated", "./e2e", `^TestFaults$/^cases$/^(resumed|drain|full|hold|drained|files|detach):(A's_messages_lost|reconnect_before_the_end)$`, regexp.MustCompile(`journal: line|out: line|(append|make|rename|unlink) \d+ \(errno`)},
	{"seeded_grant", "the grant is not fsynced", "./migrate", `^TestPowerCut$`, regexp.MustCompile(`after the power cut the record says "frozen"`)},
}

var wrongPage = regexp.MustCompile(`witness: at step \d+ \d+ pages or files were wrong on B: .*page`)

// TestSeeded: each seeded bug is caught, and by what it does: without that the silence of the harness would prove nothing. What catches it runs well without.
func TestSeeded(t *testing.T) {
	root, err := repoRoot()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience*2)
	defer cancel()
	test := func(pkg, run, tags string) (string, error) {
		cmd := exec.CommandContext(ctx, "go", "test", "-count=1", "-v", "-timeout", "5m", "-tags", tags, "-run", run, pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "LAZYMIG_FAULTS=all", "LAZYMIG_BUILDFLAGS=-tags="+tags)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() { // bin/lazymig is a seeded one
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(root, "bin", "lazymig"), "./cmd/lazymig")
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("build lazymig without a seed: %v\n%s", err, out)
		}
	})
	if out, err := test("./migrate", "^TestPowerCut$", "powercut"); err != nil {
		t.Fatalf("without a seed: %v\n%s", err, out)
	}
	var table strings.Builder
	for _, s := range seeds {
		out, err := test(s.pkg, s.run, "powercut,"+s.tag)
		how := s.says.FindString(out)
		if err == nil || how == "" {
			t.Errorf("%s (%s) is not caught: %v\n%s", s.what, s.tag, err, tail(out, 200))
			continue
		}
		fmt.Fprintf(&table, "\n%-14s %-30s caught: %s", s.tag, s.what, how)
	}
	t.Logf("seeded bugs:%s", table.String())
}
