package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Sweep removes the cgroups of a capsule whose agent was killed. It fails, and touches nothing, if something lives in them.
func Sweep(id wire.ID, free Free) error {
	parent, mount, err := cgroupParent(free)
	if err != nil {
		return err
	}
	g := &cgroups{mount: mount, top: filepath.Join(parent, groupName(id))}
	b, err := os.ReadFile(filepath.Join(g.top, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		g.closeMount()
		return nil
	}
	if err == nil && strings.Contains(string(b), "populated 1") {
		err = unix.EBUSY
	}
	if err != nil {
		g.closeMount()
		return fmt.Errorf("sweep cgroup %s: %w", groupName(id), err)
	}
	return g.remove()
}

// groupName tells capsules of two hosts that share a kernel apart from each other and from the source's cgroup.
func groupName(id wire.ID) string { return "lazymig-" + id.String()[:8] + "-dst" }
