package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lazymig/lazymig/internal/park"
	"github.com/lazymig/lazymig/lazyfs/store"
)

// filesReady lets files come until only what is being written just now is missing.
func (t *Target) filesReady(ctx context.Context, tasks func() ([]int, error)) error {
	w := store.Want{With: t.msg.With, Local: t.msg.Local, Remote: t.msg.Remote}
	pids, err := tasks()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		for name, to := range map[string]*[]string{"cwd": &w.Cwd, "root": &w.Cwd, "exe": &w.Exe} {
			p, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err == nil && p != "/" && strings.HasPrefix(p, "/") && !strings.HasSuffix(p, " (deleted)") && !slices.Contains(*to, p) {
				*to = append(*to, p)
			}
		}
	}
	var noted time.Time
	for told := uint64(0); ; {
		st, err := t.filesStand(ctx, w, &told)
		if err != nil {
			return err
		}
		park.At(t.log, "files")
		select {
		case t.detach.files <- &filesMsg{Here: st.Here, Left: st.Partly + st.Forwarded, Size: st.Left}:
		default: // the one before has not been told
		}
		if st.Ready || time.Since(noted) > noteEvery {
			if err := t.noteFiles(ctx, st); err != nil {
				t.log.Debug("note files", "err", err) // for people only
			}
			noted = time.Now()
		}
		if st.Ready || len(st.Undecided) > 0 && !comparing(st.Undecided) {
			return undecided(st.Undecided)
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// filesStand says how far the files are. A FUSE daemon that follows another knows nothing of the store: each is told once what shall move; told is the last
// one's number.
func (t *Target) filesStand(ctx context.Context, w store.Want, told *uint64) (store.Status, error) {
	for {
		var st store.Status
		var err error
		if n := t.fuse.number(); n != *told {
			if err = t.fuse.storeMove(ctx, w); err == nil {
				*told = n
			}
		}
		if err == nil {
			st, err = t.fuse.storeStatus(ctx)
		}
		if !errors.Is(err, errDaemonDied) {
			return st, err
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return st, context.Cause(ctx)
		}
	}
}

// comparing says whether some path is undecided only because it is still being looked at.
func comparing(all []store.Undecided) bool {
	return slices.ContainsFunc(all, func(u store.Undecided) bool { return strings.Contains(u.Reason, "is being compared") })
}

// filesName is where `lazymig status` finds how far the files are, in the record's directory.
const filesName = "files"

const mostFiles = 1000 // that are listed one by one

// Files is how far a tree's files are.
type Files struct {
	store.Status
	Detached int          `json:"detached"` // copies that are the tree's files now; none of the others then
	Files    []store.File `json:"files"`    // the first of them
}

// detached is the state of a file that is the tree's own; the others are the store's.
const detached = "detached"

func (t *Target) noteFiles(ctx context.Context, st store.Status) error {
	f := Files{Status: st}
	all, err := t.fuse.storeFiles(ctx)
	if err != nil {
		return err
	}
	f.Files = all[:min(len(all), mostFiles)]
	return writeState(filepath.Join(t.rec.Dir, filesName), f)
}

// noteDetached is noteFiles when the tree is on its files.
func (t *Target) noteDetached() error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), noteEvery, errors.New("it does not answer"))
	defer cancel()
	all, err := t.fuse.storeFiles(ctx)
	if err != nil {
		return err
	}
	f := Files{Detached: len(all), Files: all[:min(len(all), mostFiles)]}
	for i := range f.Files {
		f.Files[i].State = detached
	}
	return writeState(filepath.Join(t.rec.Dir, filesName), f)
}

// ReadFiles is how far the files of a migration to this host are; nil: they have not begun to come, or nothing more is known.
func (k Known) ReadFiles() *Files {
	var f Files
	if st := k.Last().State; st != Drained && st != Detached || readState(filepath.Join(k.Dir, filesName), &f) != nil {
		return nil
	}
	return &f
}
