package dump

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
)

func (d *Dump) makeDirs() error {
	if d.o.WorkDir == "" {
		dir, err := images.MakeDir("lazymig-"+d.o.ID.String()[:8]+"-", d.o.Disk)
		if err != nil {
			return err
		}
		d.o.WorkDir, d.undo.Temp = dir, dir
	}
	d.images = filepath.Join(d.o.WorkDir, "images")
	for _, dir := range []string{d.images, filepath.Join(d.o.WorkDir, "smaps")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make working directory: %w", err)
		}
	}
	return nil
}

// closeImages takes from others what CRIU gives them: it makes images with mode 0644 (criu/include/image-desc.h, CR_FD_PERM). Their directory lets
// nobody in, but they may be bound or copied elsewhere.
func (d *Dump) closeImages() error {
	ents, err := os.ReadDir(d.images)
	for _, e := range ents {
		if err == nil {
			err = os.Chmod(filepath.Join(d.images, e.Name()), 0o600)
		}
	}
	if err != nil {
		return fmt.Errorf("close images to others: %w", err)
	}
	return nil
}

// gather moves the tree into a cgroup of its own. A process born before its parent was moved is found by looking again.
func (d *Dump) gather() error {
	home, err := d.h.of(d.o.PID)
	if err != nil {
		return err
	}
	if base := path.Base(home); strings.HasPrefix(base, "lazymig-") && strings.HasSuffix(base, "-src") {
		return fmt.Errorf("process %d is being migrated already, it is in cgroup %s: %w", d.o.PID, home, unix.EBUSY)
	}
	if frozen, err := d.h.event(home, "frozen"); err == nil && frozen && home != "" {
		return fmt.Errorf("cgroup %s is frozen already: %w", home, unix.EBUSY)
	}
	cg, err := d.h.makeFor(home, "lazymig-"+d.o.ID.String()[:8]+"-src")
	if err != nil {
		return err
	}
	d.undo.Cgroup, d.undo.Home, d.undo.Record, d.undo.Mark = cg, home, d.o.GrantRecord, d.o.GrantMark
	known := map[int]bool{}
	for range undoTries {
		fresh := false
		for _, p := range d.procs {
			if p.zombie || known[p.pid] {
				continue
			}
			known[p.pid], fresh = true, true
			old, err := d.h.of(p.pid)
			switch {
			case gone(err):
				continue
			case err != nil:
				return err
			case old == cg: // born here
				old = home
			}
			d.undo.Moved = append(d.undo.Moved, moved{PID: p.pid, Start: p.start, Old: old})
			d.undo.Binds = append(d.undo.Binds, smapsPath(p.vpid))
		}
		if !fresh {
			return nil
		}
		// The keeper knows before anything is done.
		if err := d.keeper.tell(keeperMessage{State: &d.undo}); err != nil {
			return err
		}
		for _, m := range d.undo.Moved {
			if err := d.h.move(m.PID, cg); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if d.procs, err = enumerate(d.o.PID); err != nil {
			return err
		}
	}
	return fmt.Errorf("gather tree of process %d: it forks faster than it is looked at: %w", d.o.PID, unix.EAGAIN)
}
