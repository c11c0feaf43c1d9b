package lazyfs

import (
	"errors"
	"io"
	"os"
	"sync"
)

// Copier is a Watcher that has copies of files, from which the daemon reads instead of from the source.
type Copier interface {
	Watcher
	// Right says that the copy of a file holds what the source's does, as of all that the watcher has been told, and that nobody has it open for writing.
	Right(node uint64) bool
	// Copy opens a copy; nil: there is none that is right.
	Copy(node uint64) *os.File
}

// copies are the target's own copies of files, as far as they are read.
//
// A change is told to the Copier before the tree hears that it is done, so who begins to read later finds that the copy is no longer right, and who began
// earlier may be given what was there before. Contents change through handles that can write, of which the Copier knows, or by SETATTR, which holds reads off itself.
//
// FUSE's passthrough would spare the daemon these reads, but not the rest: as long as an inode has a backing file all opens of it must have that one, so a writer's
// pages, and what it maps, would go to the copy, and while the source owns the file they must not. A daemon that succeeds one that was killed would have to know
// which inodes have one, or their opens fail.
type copies struct {
	mu    sync.Mutex
	from  Copier         // nil: there are none
	cut   map[uint64]int // nodes whose size is being set
	files map[uint64]*os.File
	order []uint64 // of files, oldest first
}

const maxCopies = 256 // that are open

// use begins to read from what w has, if it has any.
func (c *copies) use(w Watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from, _ = w.(Copier)
	c.cut, c.files = map[uint64]int{}, map[uint64]*os.File{}
}

// read fills b from a copy, less at the end of the file. Not ok: the source is to be asked.
func (c *copies) read(node uint64, b []byte, off uint64) (n int, ok bool) {
	f := c.file(node)
	if f == nil {
		return 0, false
	}
	n, err := f.ReadAt(b, int64(off))
	return n, err == nil || errors.Is(err, io.EOF)
}

// file is a copy that is right.
func (c *copies) file(node uint64) *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from == nil {
		return nil
	}
	f := c.files[node]
	if c.cut[node] > 0 || !c.from.Right(node) {
		c.closeLocked(node)
		return nil
	}
	if f != nil {
		return f
	}
	if f = c.from.Copy(node); f == nil {
		return nil
	}
	for len(c.order) >= maxCopies {
		c.closeLocked(c.order[0])
	}
	c.files[node] = f
	c.order = append(c.order, node)
	return f
}

func (c *copies) closeLocked(node uint64) {
	f := c.files[node]
	if f == nil {
		return
	}
	_ = f.Close() // reads that are under way come to their end
	delete(c.files, node)
	for i, x := range c.order {
		if x == node {
			c.order = append(c.order[:i], c.order[i+1:]...)
			return
		}
	}
}

// cutting is around a change of a file's size, until the Copier has been told.
func (c *copies) cutting(node uint64) (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.from == nil {
		return func() {}
	}
	c.cut[node]++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cut[node]--; c.cut[node] == 0 {
			delete(c.cut, node)
		}
	}
}

func (c *copies) forgot(node uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(node)
}

func (c *copies) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from = nil
	for _, f := range c.files {
		_ = f.Close()
	}
	clear(c.files)
}
