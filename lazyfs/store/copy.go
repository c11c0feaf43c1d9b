package store

import (
	"os"

	"golang.org/x/sys/unix"
)

// The methods of lazyfs.Copier.

// Right says that the copy of a file is what the source's holds, as of all that has been told, and that the tree can't write it now.
func (s *Store) Right(node uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.byNode[node]
	return o != nil && o.right && !o.gone && o.in && s.opens[node].writers() == 0 && s.ctx.Err() == nil
}

// Copy opens a copy for reading; nil: there is none that is right, or names are being changed just now.
func (s *Store) Copy(node uint64) *os.File {
	if !s.tree.TryRLock() { // who changes them may wait for the source
		return nil
	}
	defer s.tree.RUnlock()
	if !s.Right(node) {
		return nil
	}
	s.mu.Lock()
	o := s.byNode[node]
	s.mu.Unlock()
	if o == nil {
		return nil
	}
	fd, err := s.open(o, unix.O_RDONLY|unix.O_NOATIME)
	if err != nil {
		return nil // it is read from the source
	}
	return os.NewFile(uintptr(fd), "copy")
}

// writers is how many handles can write.
func (o *opens) writers() int {
	if o == nil {
		return 0
	}
	return o.write
}
