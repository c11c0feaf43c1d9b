package e2e

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// given is a directory that the tree takes along, and that is removed from the source in the end.
const given = "/srv/given"

// givenNames are its files.
var givenNames = at("a", "sub/b", "sub/c")

func givenBytes(name string) []byte { return bytes.Repeat([]byte(name+"\n"), 20000) }

func (f *faulty) give() {
	f.r.t.Helper()
	if err := os.MkdirAll(f.r.l.A.Path(given+"/sub"), 0o755); err != nil {
		f.r.t.Fatal(err)
	}
	for _, n := range givenNames {
		if err := os.WriteFile(f.r.l.A.Path(given+"/"+n), givenBytes(n), 0o644); err != nil {
			f.r.t.Fatal(err)
		}
	}
}

// notLost demands that each file is whole on the source, or is not there any more, and whole on the target. When nothing went wrong they are removed.
func (f *faulty) notLost() {
	r := f.r
	r.t.Helper()
	for _, n := range givenNames {
		b, err := os.ReadFile(r.l.A.Path(given + "/" + n))
		if errors.Is(err, fs.ErrNotExist) {
			moved, _ := filepath.Glob(r.l.B.Path("/var/lib/lazymig/*.target/root" + given + "/" + n)) // the pattern is good
			if len(moved) != 1 {
				r.t.Errorf("%s is on neither host: %q", n, moved)
				continue
			}
			b, err = os.ReadFile(moved[0])
		} else if f.x.name == "nothing" {
			r.t.Errorf("%s is not removed from the source: %v", n, err)
		}
		if err != nil || !bytes.Equal(b, givenBytes(n)) {
			r.t.Errorf("%s: %d bytes, or not its own, %v", n, len(b), err)
		}
	}
}
