package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDiffers lists what the target has and the source has not, or another, each by name.
func TestDiffers(t *testing.T) {
	r := newRig(t)
	same := map[string]string{"app/same": "same", "app/in/same": "same", "app/link": "->same", "one": "one"}
	fill(t, r.src, same)
	fill(t, r.own, same)
	fill(t, r.src, map[string]string{"app/here": "only", "away/x": "x", "app/kind/": ""})
	differs := func(paths string) string {
		t.Helper()
		var all []Undecided
		r.say("differs "+paths, &all)
		var b strings.Builder
		for _, u := range all {
			b.WriteString(u.Path + ": " + u.Reason + "\n")
		}
		return b.String()
	}
	if got := differs(`["/app", "/one", "/away", "/away/x"]`); got != "" {
		t.Errorf("what is the same, or not there, differs: %s", got)
	}
	fill(t, r.src, map[string]string{"app/size": "12345", "app/in/bytes": "abc", "app/mode": "m"})
	fill(t, r.own, map[string]string{"app/size": "1234", "app/in/bytes": "abd", "app/mode": "m", "app/kind": "file", "app/in/extra": "e", "one": "One"})
	must(t, os.Chmod(filepath.Join(r.own, "app/mode"), 0o600))
	must(t, os.Remove(filepath.Join(r.own, "app/link")))
	must(t, os.Symlink("other", filepath.Join(r.own, "app/link")))
	want := "/app/in/bytes: is another on the target\n/app/in/extra: is on the target only\n/app/kind: is of another kind on the target\n/app/link: is another on the target\n"
	if got := differs(`["/app"]`); !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 5 {
		t.Errorf("%s, want\n%s and one more", got, want)
	}
	must(t, os.RemoveAll(filepath.Join(r.own, "app/in")))
	must(t, os.Remove(filepath.Join(r.own, "app/link")))
	want = "/app/kind: is of another kind on the target\n/app/mode: is 600 of 0:0 on the target, and 644 of 0:0 here\n/app/size: has 4 bytes on the target, and 5 here\n"
	if got := differs(`["/app"]`); got != want {
		t.Errorf("%s, want\n%s", got, want)
	}
	if got := differs(`["/one"]`); got != "/one: is another on the target\n" {
		t.Errorf("a file: %s", got)
	}
	var all []Undecided
	r.say(`filesdiffer ["/app/mode", "/app/size", "/one", "/app/same", "/app/here", "/app/none", "/none/x", "/app/kind", "/app/kind/x", "/app"]`, &all)
	var got []string
	for _, u := range all {
		got = append(got, u.Path+": "+u.Reason)
	}
	wants := []string{"/app/mode: is 600 of 0:0 on the target, and 644 of 0:0 here", "/app/size: has 4 bytes on the target, and 5 here", "/one: is another on the target"}
	if !slices.Equal(got, wants) {
		t.Errorf("files: %q, want %q", got, wants)
	}
}
