package lazyfs

import "time"

// valid is how long the kernel believes names and attributes of the source. Nobody but the tree changes them, and
// the kernel sees what the tree does. While that still runs at the source they are for one use.
func (f *fsys) valid() time.Duration {
	if f.seeds.isFrozen() {
		return time.Hour
	}
	return 0
}

// opens notes a file that is opened while its contents may still change.
func (f *fsys) opens(node uint64) {
	if f.seeds.isFrozen() {
		return
	}
	f.earlyMu.Lock()
	defer f.earlyMu.Unlock()
	f.early[node] = struct{}{}
}

// frozen makes the kernel forget what it has read until now.
func (f *fsys) frozen() {
	f.earlyMu.Lock()
	list := f.early
	f.early = map[uint64]struct{}{}
	f.earlyMu.Unlock()
	for node := range list {
		f.dev.invalInode(node, 0)
	}
}
