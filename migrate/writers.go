package migrate

import (
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/remotefs"
)

// writers finds who on this host can write files that move, beside the frozen tree: it is killed only while the target asks this already.
func (s *Source) writers(files []remotefs.FileID) (map[remotefs.FileID]string, error) {
	list := make([]preflight.Inode, len(files))
	for i, f := range files {
		list[i] = preflight.Inode(f)
	}
	found, err := preflight.Writers(list, s.dump.Holds)
	all := make(map[remotefs.FileID]string, len(found))
	for f, who := range found {
		all[remotefs.FileID(f)] = who
	}
	return all, err
}
