package lazyfs

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// streamErrors are the errors of streamed writes. Each open file hears once of what went wrong since it was opened, at its next fsync or close, as the kernel tells errors of pages that
// it wrote back (Documentation/core-api/errseq.rst). They are kept in a file of the daemon's directory, whole or as it was.
type streamErrors struct {
	dir string

	mu   sync.Mutex
	kept keptErrors
}

type keptErrors struct {
	Nodes   map[uint64]nodeError   `json:"nodes,omitempty"`
	Handles map[uint64]handleError `json:"handles,omitempty"` // of these nodes
}

type nodeError struct {
	Count uint64        `json:"count"`
	Errno syscall.Errno `json:"errno"`
	Last  uint64        `json:"last"`            // record
	Heard uint64        `json:"heard,omitempty"` // of these somebody has heard
}

type handleError struct {
	Node  uint64        `json:"node"`
	Count uint64        `json:"count"`           // what it has heard of, or was before it
	By    uint64        `json:"by,omitempty"`    // the request that heard it: if it comes again it hears it again
	Errno syscall.Errno `json:"errno,omitempty"` // what that heard
}

const errorsName = "write-errors"

func (x *streamErrors) load(dir string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	err := readWhole(filepath.Join(dir, errorsName), &x.kept)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (x *streamErrors) saveLocked() error {
	path := filepath.Join(x.dir, errorsName)
	if len(x.kept.Nodes) > 0 {
		return writeWhole(path, x.kept)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// add notes that a record failed. One that is sent again by a successor fails again, which is the same error.
func (x *streamErrors) add(node uint64, errnum syscall.Errno, record uint64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.kept.Nodes == nil {
		x.kept = keptErrors{Nodes: map[uint64]nodeError{}, Handles: map[uint64]handleError{}}
	}
	e := x.kept.Nodes[node]
	if e.Last >= record {
		return nil
	}
	x.kept.Nodes[node] = nodeError{Count: e.Count + 1, Errno: errnum, Last: record, Heard: e.Heard}
	return x.saveLocked()
}

// opened is a new open file: what went wrong before is not its affair.
func (x *streamErrors) opened(node, h uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if e, ok := x.kept.Nodes[node]; ok {
		x.kept.Handles[h] = handleError{Node: node, Count: e.Count}
		_ = x.saveLocked() // a successor would tell it too often
	}
}

// take is what an open file has to hear.
func (x *streamErrors) take(node, h, by uint64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	e, ok := x.kept.Nodes[node]
	if !ok {
		return nil
	}
	k := x.kept.Handles[h]
	switch {
	case k.Count < e.Count:
		x.kept.Handles[h] = handleError{Node: node, Count: e.Count, By: by, Errno: e.Errno}
		e.Heard = e.Count
		x.kept.Nodes[node] = e
		_ = x.saveLocked() // a successor would tell it once more
		return errno(e.Errno)
	case k.By == by && by != 0:
		return errno(k.Errno)
	}
	return nil
}

// unheard are the nodes with an error that nobody has heard of, as no open file has been synced or closed since.
func (x *streamErrors) unheard() map[uint64]error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all map[uint64]error
	for node, e := range x.kept.Nodes {
		if e.Heard < e.Count {
			if all == nil {
				all = map[uint64]error{}
			}
			all[node] = e.Errno
		}
	}
	return all
}

func (x *streamErrors) released(h uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.kept.Handles, h) // no other has this number; it is written down with the next change
}

// forgot is when the kernel no longer knows a node.
func (x *streamErrors) forgot(node uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.kept.Nodes[node]; !ok {
		return
	}
	delete(x.kept.Nodes, node)
	for h, k := range x.kept.Handles {
		if k.Node == node {
			delete(x.kept.Handles, h)
		}
	}
	_ = x.saveLocked() // a successor would know of a node that nobody asks for
}
