package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/lazymig/lazymig/internal/fsmodel"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// states are what the files of a tree may be, beside forwarded (package lazyfs tests that): some of it is here, all of it is soon after each change,
// all of it is here and the tree is on it.
var states = map[string]func(*testing.T) (r *rig, dir string){
	"partly": func(t *testing.T) (*rig, string) { return moving(t, false) },
	"here":   func(t *testing.T) (*rig, string) { return moving(t, true) },
	"detached": func(t *testing.T) (*rig, string) {
		r, _ := moving(t, true)
		return r, detached(t, r)
	},
}

// detached puts the tree on its copies.
func detached(t *testing.T, r *rig) (dir string) {
	t.Helper()
	if s := r.settle(); len(s.Undecided) > 0 {
		t.Fatalf("%+v", s.Undecided)
	}
	r.say("done", nil)
	return filepath.Join(r.root, "w")
}

// allHere waits until copies of all files are right.
func (r *rig) allHere(t *testing.T) {
	t.Helper()
	kerneltest.Eventually(t, "copies", func() bool {
		var st Status
		r.say("status", &st)
		return st.Ready && st.Forwarded+st.Partly == 0
	})
}

// moving is a mount with an empty directory that comes.
func moving(t *testing.T, eager bool) (*rig, string) {
	t.Helper()
	r := newRigWith(t, helperConf{Src: t.TempDir(), Dir: t.TempDir(), Own: t.TempDir(), Eager: eager})
	must(t, os.Mkdir(filepath.Join(r.src, "w"), 0o755))
	r.move(Want{With: []string{"/w"}})
	r.here(0)
	return r, filepath.Join(r.mnt, "w")
}

func TestPosix(t *testing.T) {
	for state, begin := range states {
		t.Run(state, func(t *testing.T) {
			for name, fn := range posixtest.All {
				if name == "FcntlFlockLocksFile" || name == "OpenSymlinkRace" && state == "detached" {
					continue // see lazyfs' TestPosix; the other is about FUSE
				}
				t.Run(name, func(t *testing.T) {
					_, dir := begin(t)
					fn(t, dir)
				})
			}
		})
	}
}

// TestSees gives the mount and a plain directory the same random operations in each state: a program must not see a difference. What is here is read from there: the
// kernel's own pages are taken away all the time.
func TestSees(t *testing.T) {
	for state, begin := range states {
		t.Run(state, func(t *testing.T) {
			for seed := range uint64(2) {
				r, dir := begin(t)
				source := filepath.Join(r.src, "w")
				if state == "detached" {
					source = dir
				}
				fsmodel.Compare(t, seed+300, 1000, dir, source, func(d *fsmodel.Dir, step int) {
					if state == "here" && step%25 == 0 {
						r.allHere(t)
					}
					if step%3 == 0 {
						d.Uncache()
					}
				})
			}
		})
	}
}

// TestTable is lazyfs' in each state that is ours: what is made before is there or has come when the rest is done with it.
func TestTable(t *testing.T) {
	for state := range states {
		t.Run(state, func(t *testing.T) {
			fsmodel.KeepThread(t)
			r, dir := moving(t, state != "partly")
			fsmodel.Table(t, dir, func() (string, string) {
				switch state {
				case "here":
					r.allHere(t)
				case "detached":
					dir = detached(t, r)
					return dir, dir
				}
				return dir, filepath.Join(r.src, "w")
			})
		})
	}
}
