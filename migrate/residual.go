package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/lazyfs/store"
	"github.com/lazymig/lazymig/preflight"
)

// A tree may be put on its files and still need its source: for directories that stay there (--remote), and for standard streams that are carried. It stays
// "drained" then, whoever serves what is left goes on, and the outcome of the switch stays beside the record, so that the next agent knows.

// MaxRemote is how many directories may stay; each is told as a residual dependency.
const MaxRemote = maxReasons - 1

// residual is what the tree will need from the source when it is on its files.
func (t *Target) residual(carried bool) []string {
	var r []string
	for _, p := range t.msg.Remote {
		r = append(r, trim("files below "+p+" (--remote)"))
	}
	if carried {
		r = append(r, "standard streams, which are carried by lazymig; with --stdio null they would not be")
	}
	return r
}

// carries says whether standard streams are carried to the source.
func (t *Target) carries() bool {
	return t.stdio != nil && (t.msg.Stdio == "" || t.msg.Stdio == StdioRelay)
}

// endSome is endHelpers where something stays. The store is finished before the FUSE daemon hears anything of it: one that has followed another since knows
// of none, and would begin anew.
func (t *Target) endSome(m *detachedMsg, fresh bool) error {
	if err := store.Finish(t.rec.Dir); err != nil {
		return err
	}
	if t.fuse == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), leaveTime, errors.New("it does not answer"))
	defer cancel()
	var err error
	if fresh && t.msg.RemoveFiles && len(t.msg.With) > 0 {
		err = t.removeFiles(ctx, m)
	}
	if fresh {
		if derr := t.fuse.storeDone(ctx); !errors.Is(derr, errDaemonDied) { // the one that follows it has no store
			err = errors.Join(err, derr)
		}
	}
	if len(t.msg.Remote) > 0 {
		return err
	}
	t.endFUSE(m)
	return err
}

// ofTarget says whether a path is the target's in any case.
func ofTarget(p string) bool {
	return p == "/" || strings.HasPrefix(p+"/", "/proc/") || strings.HasPrefix(p+"/", "/sys/") || strings.HasPrefix(p+"/", "/dev/")
}

// checkRemote refuses directories that can't stay.
func (s *Source) checkRemote() error {
	if len(s.opt.Remote) == 0 {
		return nil
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", s.opt.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root of the tree: %w", err)
	}
	defer unix.Close(root)
	var bad []preflight.Finding
	for _, p := range s.opt.Remote {
		refuse := func(why string) {
			bad = append(bad, preflight.Finding{
				Code: "remote", Level: preflight.Refuse, What: p + " is to stay here (--remote)", Why: why, Do: "name a directory, by the path that it really has",
			})
		}
		if ofTarget(p) {
			refuse("the root can't, and /proc, /sys and /dev are the target's")
			continue
		}
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS}
		fd, err := unix.Openat2(root, p, &how)
		switch {
		case errors.Is(err, unix.ELOOP):
			refuse("a symbolic link leads there")
		case err != nil:
			refuse((&os.PathError{Op: "open", Path: p, Err: err}).Error())
		default:
			unix.Close(fd)
		}
	}
	return preflight.Refusals(bad)
}
