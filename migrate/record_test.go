package migrate

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/wire"
)

func newRecord(t *testing.T, dir string, side Side) *Record {
	t.Helper()
	r, err := NewRecord(dir, wire.NewID(), Entry{State: Prepare, Side: side, Peer: "peer", PID: 7})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func enter(t *testing.T, r *Record, states ...State) {
	t.Helper()
	for _, s := range states {
		if err := r.Enter(s, "because"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	a, b := newRecord(t, dir, SideSource), newRecord(t, dir, SideTarget)
	enter(t, a, Frozen, Granted, Resumed, Drained, Ended)
	enter(t, b, Frozen, Asked)
	all, err := List(dir)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	if e := all[0].Last(); all[0].ID != a.ID || e.State != Ended || e.Side != SideSource || e.PID != 7 || e.Peer != "peer" || e.Note != "because" || e.Boot == "" {
		t.Errorf("source's record ends with %+v", e)
	}
	if len(all[0].Entries) != 6 || all[1].Last().State != Asked {
		t.Errorf("%+v", all)
	}
	if err := Forget(dir, b.ID); err == nil {
		t.Error("a migration that is not over was forgotten")
	}
	if err := os.WriteFile(LogPath(dir, a.ID), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Forget(dir, a.ID); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(LogPath(dir, a.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the log is still there:", err)
	}
	if err := Forget(dir, a.ID); err == nil || !strings.Contains(err.Error(), "no record") {
		t.Errorf("forgotten twice: %v", err)
	}
}

// What is not in the table can't be written, least of all a way back from the grant.
func TestTransitions(t *testing.T) {
	r := newRecord(t, t.TempDir(), SideSource)
	enter(t, r, Frozen, Granted)
	for _, s := range []State{Prepare, Frozen, Asked, Aborted, Granted, ""} {
		if err := r.Enter(s, ""); err == nil {
			t.Errorf("granted was followed by %q", s)
		}
	}
	for s := range next {
		if s.Handed() {
			for _, n := range next[s] {
				if !n.Handed() {
					t.Errorf("%s leads back to %s", s, n)
				}
			}
		}
	}
}

// The mark that the keeper looks for stands in a record from the grant on, and not before.
func TestGrantMark(t *testing.T) {
	r := newRecord(t, t.TempDir(), SideSource)
	path := filepath.Join(r.Dir, "record")
	has := func() bool {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), grantMark)
	}
	enter(t, r, Frozen)
	if has() {
		t.Error("the mark is there before the grant")
	}
	enter(t, r, Granted)
	if !has() {
		t.Error("the mark is not there after the grant")
	}
}

// A torn last line counts as not written; damage before it is told, and does not hide the others.
func TestDamagedRecord(t *testing.T) {
	dir := t.TempDir()
	torn, bad, good := newRecord(t, dir, SideTarget), newRecord(t, dir, SideTarget), newRecord(t, dir, SideTarget)
	for _, r := range []*Record{torn, bad, good} {
		enter(t, r, Frozen, Asked)
	}
	cut := func(r *Record, f func([]byte) []byte) {
		p := filepath.Join(r.Dir, "record")
		b, err := os.ReadFile(p)
		if err == nil {
			err = os.WriteFile(p, f(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cut(torn, func(b []byte) []byte { return b[:len(b)-9] })
	cut(bad, func(b []byte) []byte { b[20] ^= 1; return b })
	all, err := List(dir)
	if err == nil || !strings.Contains(err.Error(), bad.ID.String()) {
		t.Errorf("damage is not told: %v", err)
	}
	got := map[wire.ID]State{}
	for _, k := range all {
		got[k.ID] = k.Last().State
	}
	if len(got) != 2 || got[torn.ID] != Frozen || got[good.ID] != Asked {
		t.Errorf("%v", got)
	}
}

// A record is gone on with by the agent that follows one that was killed, also after a torn line.
func TestOpenRecord(t *testing.T) {
	dir := t.TempDir()
	r := newRecord(t, dir, SideTarget)
	enter(t, r, Frozen)
	f, err := os.OpenFile(filepath.Join(r.Dir, "record"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(`12345678 {"state":"as`)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	all, err := List(dir)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	again, err := openRecord(all[0])
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	enter(t, again, Aborted)
	all, err = List(dir)
	if err != nil || len(all) != 1 || all[0].Last().State != Aborted || all[0].Last().Peer != "peer" {
		t.Fatalf("%+v, %v", all, err)
	}
}
