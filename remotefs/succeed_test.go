package remotefs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// TestClientDies loses the request or the reply of each operation with the client that asked: the next one asks again under the same number, and
// it was done once. Forgets, releases, pieces of directories and seeds have no number: a release may come twice, seeds are of before the grant, the others are counts.
func TestClientDies(t *testing.T) {
	for name := range operations {
		if name == "forget" || name == "release" || name == "readdir" || name == "seed" || name == "tree" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			want := outcome(t, name, nil, nil, 0)
			for n := range 2 {
				for what, d := range map[string]wire.Type{"request": 0, "reply": 1} {
					if got := outcome(t, name, func(l *line, typ wire.Type) { l.cutAt(typ+d, 1) }, nil, n+1); got != want {
						t.Errorf("%s lost with %d clients:\n%s\nwant\n%s", what, n+1, got, want)
					}
				}
			}
		})
	}
}

// TestNotAskedAgain: what a dead client had passed on is forgotten by the server, and numbers do not wait for it.
func TestNotAskedAgain(t *testing.T) {
	dir := t.TempDir()
	l := newLine(t, dir)
	for i := range uint64(maxUnanswered) {
		_, err := l.c.Mkdir(ctx, wire.FileCaller{Number: i + 1}, 1, string(rune('a'+i/26))+string(rune('a'+i%26)), 0o755, 0)
		must(t, err)
	}
	l.cutAt(wire.MsgFileGetAttr, 1)
	l.die(1, func() { _, _ = l.c.GetAttr(ctx, 1) }, map[uint64]bool{7: true})
	l.settled(7)
	for i := range uint64(2 * maxUnanswered) {
		who := wire.FileCaller{Number: 1000 + i}
		if _, err := l.c.Lookup(ctx, who, 1, "none"); wire.ErrnoOf(err) != unix.ENOENT {
			t.Fatal(err)
		}
		l.c.Settled(who.Number)
	}
	l.settled(0)
	ents, err := os.ReadDir(dir)
	must(t, err)
	if len(ents) != maxUnanswered {
		t.Errorf("%d directories", len(ents))
	}
	if _, err := os.Stat(filepath.Join(dir, "aa")); err != nil {
		t.Error(err)
	}
}
