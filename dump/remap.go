package dump

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
)

// A file that is open, has links but no name where it was opened gets a new name from CRIU (option link_remap), beside
// its old one. The restore needs that name, but CRIU removes it when the tree is left running.

const remapSuffix = ".lazymig"

// keepRemaps gives each of CRIU's names a second one. Runs while criu waits in post-dump.
func (d *Dump) keepRemaps() error {
	names, err := images.LinkRemaps(d.images)
	if err != nil || len(names) == 0 {
		return err
	}
	for _, n := range names {
		d.undo.Remaps = append(d.undo.Remaps, n, n+remapSuffix)
	}
	if err := d.keeper.tell(keeperMessage{State: &d.undo}); err != nil {
		return err
	}
	return d.thread.do(func() error {
		for _, n := range names {
			if err := unix.Link(n, n+remapSuffix); err != nil {
				return fmt.Errorf("keep link remap %s: %w", n, err)
			}
		}
		return nil
	})
}

// restoreRemaps puts CRIU's names back when criu has ended.
func (d *Dump) restoreRemaps() error {
	if len(d.undo.Remaps) == 0 {
		return nil
	}
	return d.thread.do(func() error {
		var errs []error
		for i := 0; i < len(d.undo.Remaps); i += 2 {
			if err := unix.Rename(d.undo.Remaps[i+1], d.undo.Remaps[i]); err != nil {
				errs = append(errs, fmt.Errorf("put back link remap: %w", err))
			}
		}
		return errors.Join(errs...)
	})
}

// removeRemaps removes what nobody has; runs on a thread in the tree's mount namespace.
func removeRemaps(names []string) error {
	var errs []error
	for _, n := range names {
		if err := unix.Unlink(n); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove link remap %s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}
