package lazyfs

import (
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// listings knows which lists of names the kernel keeps in the pages of directories (FOPEN_CACHE_DIR), so that a directory that is listed again and again costs no
// request. Each list that begins at position 0 is compared by the kernel with the directory's version, which every change by the tree moves, and with its mtime as far
// as that is known there (fs/fuse/readdir.c: fuse_readdir_cached; fs/fuse/dir.c: fuse_dir_changed). What somebody else at the source changes it would not see: so
// a list is kept no longer than names are here (nameLife), counted from when the source told them. An open without FOPEN_KEEP_CACHE drops it
// (fs/fuse/dir.c, fuse_dir_open).
type listings struct {
	mu    sync.Mutex
	since map[uint64]time.Time // directories → when the oldest was told that the kernel may keep
	count int                  // lists that were begun
}

// opens is how a directory is to be opened.
func (l *listings) opens(node uint64) (flags uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.since[node]
	if ok && time.Since(t) < nameLife {
		return fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	}
	delete(l.since, node)
	return fuse.FOPEN_CACHE_DIR
}

// begun is when a list is given from position 0 that the source told then.
func (l *listings) begun(node uint64, told time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if l.since == nil {
		l.since = map[uint64]time.Time{}
	}
	if t, ok := l.since[node]; !ok || told.Before(t) {
		l.since[node] = told
	}
}

func (l *listings) forgot(node uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.since, node)
}
