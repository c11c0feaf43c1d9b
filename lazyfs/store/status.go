package store

import (
	"maps"
	"slices"
	"strings"
)

// Status is where the files stand.
type Status struct {
	Ready     bool           `json:"ready"`             // all is here but what is being written just now
	Blocked   string         `json:"blocked,omitempty"` // why nothing is copied at the moment; it is tried again
	Forwarded int            `json:"forwarded"`         // files that are to come, of which nothing is here
	Partly    int            `json:"partly"`            // of which something is here
	Here      int            `json:"here"`              // whose copies are whole and verified
	Left      int64          `json:"left"`              // bytes that are to come, holes included
	Copied    int64          `json:"copied"`            // bytes that have come, again and again included
	Foreign   map[string]int `json:"foreign,omitempty"` // files that somebody else on the source has changed: how often
	Undecided []Undecided    `json:"undecided,omitempty"`
}

// File is where one file stands.
type File struct {
	Path  string `json:"path"`  // below the root; of a file without a name: its hidden one
	State string `json:"state"` // forwarded, partly or here
	Size  int64  `json:"size"`
	Left  int64  `json:"left,omitempty"`
}

const (
	stateForwarded = "forwarded"
	statePartly    = "partly"
	stateHere      = "here"
)

// stateLocked is where an object stands, with mu.
func (o *object) stateLocked() (state string, left int64) {
	size := int64(o.attr.Size)
	if !o.isReg() {
		size = 0
	}
	left = o.data.size(size)
	switch {
	case o.in && o.stamped && !o.dirtyLocked():
		return stateHere, 0
	case o.in && left < size:
		return statePartly, left
	}
	return stateForwarded, left
}

// Status tells where the files stand.
func (s *Store) Status() Status {
	st := Status{Copied: s.copied.Load(), Foreign: map[string]int{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.byNode {
		if !o.in || o.isDir() {
			continue
		}
		state, left := o.stateLocked()
		st.Left += left
		switch state {
		case stateHere:
			st.Here++
		case statePartly:
			st.Partly++
		default:
			st.Forwarded++
		}
	}
	maps.Copy(st.Foreign, s.foreign)
	st.Blocked = s.blocked
	st.Undecided = s.left
	st.Ready = s.ready
	return st
}

// Path is where a file is, below the root; empty: it has no name, or is none of those that come.
func (s *Store) Path(node uint64) string {
	s.tree.RLock()
	defer s.tree.RUnlock()
	s.mu.Lock()
	o := s.byNode[node]
	s.mu.Unlock()
	if o == nil {
		return ""
	}
	return s.path(o)
}

// Files lists all files, by path.
func (s *Store) Files() []File {
	s.tree.RLock()
	defer s.tree.RUnlock()
	var list []*object
	var all []File
	s.mu.Lock()
	for _, o := range s.byNode {
		if o.in && !o.isDir() {
			list = append(list, o)
			state, left := o.stateLocked()
			all = append(all, File{State: state, Size: int64(o.attr.Size), Left: left})
		}
	}
	s.mu.Unlock()
	for i, o := range list {
		all[i].Path = s.path(o)
	}
	slices.SortFunc(all, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return all
}
