package restore

import (
	"fmt"
	"os"

	"github.com/lazymig/lazymig/internal/parts"
)

// Free does what an agent that has given up its privileges can't do itself: the tree descends from the guardian, and must not inherit what the agent lacks.
type Free interface {
	Start(s parts.Spec) (*parts.Process, error)
	AbortFuse(minors []string) error          // aborts FUSE connections
	MountCgroup() (*os.File, error)           // a private mount of cgroup v2, where there is none
	Program(pid int) (path string, err error) // that a process executes
}

// Here is Free in this process.
type Here struct{ parts.Here }

// AbortFuse is Free's.
func (Here) AbortFuse(minors []string) error { return abortFuse(minors) }

// MountCgroup is Free's.
func (Here) MountCgroup() (*os.File, error) { return mountCgroup() }

// Program is Free's.
func (Here) Program(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) }
