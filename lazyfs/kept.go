package lazyfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// What a daemon writes down for a successor, from Hold on. Each file is whole or as it was; none is synced: it need not outlive the machine.
//
//	state     INIT, lookups that the source does not know; until the grant the overlay's names, too, and the replies to requests that have changed them
//	node-ID   a local node, with the requests that have changed it last
//	data-ID   its contents, the very file that is written
//	writes    what has been written and is not at the source yet (window.go); write-errors what failed of it
//	life      how many daemons there have been
//
// Before the grant a request that changes names is done and written down with its reply, one at a time: a successor gives that reply to a repeat.

// keptState is what is not about one local node.
type keptState struct {
	Init    []byte            `json:"init"`
	Granted bool              `json:"granted"`
	Extra   map[uint64]uint64 `json:"extra,omitempty"` // see ref
	Owed    map[uint64]uint64 `json:"owed,omitempty"`
	Names   []keptEntry       `json:"names,omitempty"`
	Next    uint64            `json:"next"`
	Replies []keptReply       `json:"replies,omitempty"`
}

// keptEntry is a name of the overlay. It need not be UTF-8.
type keptEntry struct {
	Dir    uint64 `json:"dir"`
	Name   []byte `json:"name"`
	Node   uint64 `json:"node,omitempty"`
	Covers bool   `json:"covers,omitempty"`
	Was    uint64 `json:"was,omitempty"`
}

// keptReply is what the kernel was told, or was about to be.
type keptReply struct {
	Number uint64 `json:"number"`
	Reply  []byte `json:"reply"`
}

// keptLocal is a local node but its contents.
type keptLocal struct {
	ID      uint64            `json:"id"`
	Attr    wire.FileAttr     `json:"attr"`
	Mode    uint32            `json:"mode"`
	Lookups uint64            `json:"lookups"`
	Opens   int               `json:"opens"`
	Target  string            `json:"target,omitempty"`
	Xattrs  map[string][]byte `json:"xattrs,omitempty"`
	Done    []uint64          `json:"done,omitempty"`
	File    bool              `json:"file"`
}

const (
	keptName   = "state"
	lifeName   = "life"
	nodeName   = "node-"
	dataName   = "data-"
	maxReplies = 64
	maxDone    = 256 // a request is answered long before so many others have changed the same node
)

// writeWhole makes a file whole or not at all, as far as this process's end is concerned.
func writeWhole(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (o *overlay) keptPath(kind string, id uint64) string {
	return filepath.Join(o.keptIn, fmt.Sprintf("%s%x", kind, id&^localBit))
}

// keepAll begins to keep all in dir, unless that has begun. No operation of the overlay is at work meanwhile.
func (o *overlay) keepAll(dir string, init []byte) (again bool, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return false, fmt.Errorf("keep local files: %w", err)
	}
	o.grant.Lock()
	defer o.grant.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keptIn != "" {
		return true, nil
	}
	if o.lock, err = lockDir(dir); err != nil { // nobody else has it
		return false, fmt.Errorf("keep local files: %w", err)
	}
	o.keptIn, o.kept.Init, o.keptNames = dir, init, false
	if err := o.writeAllLocked(); err != nil {
		o.keptIn = ""
		_ = o.lock.Close()
		o.lock = nil
		return false, fmt.Errorf("keep local files: %w", err)
	}
	return false, nil
}

// writeAllLocked writes all down: local nodes first, so that each name has its node.
func (o *overlay) writeAllLocked() error {
	for _, l := range o.locals {
		if l.kept {
			continue
		}
		if err := o.writeLocked(l); err != nil {
			return fmt.Errorf("keep local file %x: %w", l.id, err)
		}
	}
	if o.keptNames {
		return nil
	}
	s := &o.kept
	s.Granted, s.Next, s.Names = o.isGrant.Load(), o.next, nil
	s.Extra, s.Owed = map[uint64]uint64{}, map[uint64]uint64{}
	for node, r := range o.refs {
		if r.extra > 0 {
			s.Extra[node] = r.extra
		}
		if r.owed > 0 {
			s.Owed[node] = r.owed
		}
	}
	for k, x := range o.names {
		s.Names = append(s.Names, keptEntry{Dir: k.dir, Name: []byte(k.name), Node: x.node, Covers: x.covers, Was: x.was})
	}
	if err := writeWhole(filepath.Join(o.keptIn, keptName), s); err != nil {
		return err
	}
	o.keptNames = true
	return nil
}

// held says that requests which change names have to be written down.
func (o *overlay) held() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.keptIn != "" && !o.isGrant.Load()
}

// heldReply is the reply to a request that a daemon before this one has done.
func (o *overlay) heldReply(number uint64) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.kept.Replies {
		if r.Number == number {
			return r.Reply
		}
	}
	return nil
}

// keepReply writes down what a request has changed, and its reply.
func (o *overlay) keepReply(op uint32, number uint64, reply []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keptIn == "" || o.isGrant.Load() {
		return
	}
	if op != opLookup { // a lookup that is done twice counts twice, that is all
		r := o.kept.Replies
		o.kept.Replies = append(r[max(0, len(r)+1-maxReplies):], keptReply{number, append([]byte(nil), reply...)})
		o.keptNames = false
	}
	if err := o.writeAllLocked(); err != nil {
		o.f.log.Error("keep names for a successor", "err", err)
	}
}

// keepGranted writes down that the overlay has ended.
func (o *overlay) keepGranted() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keptIn == "" {
		return
	}
	o.kept.Replies, o.keptNames = nil, false
	if err := o.writeAllLocked(); err != nil { // a successor would end it again
		o.f.log.Error("keep grant for a successor", "err", err)
	}
}

// writeLocked writes a node down when its contents are there.
func (o *overlay) writeLocked(l *local) error {
	if l.file != nil && !l.linked {
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", l.file.Fd()), unix.AT_FDCWD, o.keptPath(dataName, l.id), unix.AT_SYMLINK_FOLLOW)
		if err != nil {
			return err
		}
		l.linked = true
	}
	err := writeWhole(o.keptPath(nodeName, l.id), keptLocal{
		ID: l.id, Attr: l.attr, Mode: l.mode, Lookups: l.lookups, Opens: l.opens, Target: l.target, Xattrs: l.xattrs, Done: l.done, File: l.file != nil,
	})
	l.kept = err == nil
	return err
}

// keepLocked writes down how a node is after a request; 0: after something that is not a request, or is never repeated.
func (o *overlay) keepLocked(l *local, number uint64) {
	if o.keptIn == "" {
		return
	}
	if number != 0 {
		l.done = append(l.done[max(0, len(l.done)+1-maxDone):], number)
	}
	if err := o.writeLocked(l); err != nil { // it holds as long as this daemon does
		o.f.log.Error("keep local file for a successor", "node", l.id, "err", err)
	}
}

func (o *overlay) unkeepLocked(l *local) {
	if o.keptIn == "" {
		return
	}
	for _, kind := range []string{nodeName, dataName} {
		if err := os.Remove(o.keptPath(kind, l.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
			o.f.log.Error("remove local file", "node", l.id, "err", err)
		}
	}
}

// change is with for what changes a node, once for each request even if a daemon before this one has done it.
func (o *overlay) change(number, node uint64, fn func(*local) error) error {
	return o.with(node, func(l *local) error {
		if slices.Contains(l.done, number) {
			return nil
		}
		err := fn(l)
		if err == nil && o.locals[node] == l {
			o.keepLocked(l, number)
		}
		return err
	})
}

// load is the successor's keepAll.
func (o *overlay) load(from *Legacy) (init []byte, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lock, o.keptIn = from.lock, from.path
	s := &o.kept
	if err := readWhole(filepath.Join(o.keptIn, keptName), s); err != nil {
		return nil, err
	}
	o.isGrant.Store(s.Granted)
	o.next = s.Next
	if err := o.loadNodesLocked(); err != nil {
		return nil, err
	}
	for node, n := range s.Extra {
		o.refLocked(node).extra = n
	}
	for node, n := range s.Owed {
		o.refLocked(node).owed = n
	}
	for _, e := range s.Names {
		o.names[nameKey{e.Dir, string(e.Name)}] = &name{node: e.Node, covers: e.Covers, was: e.Was}
		o.pinLocked(e.Dir)
		switch l := o.locals[e.Node]; {
		case l != nil:
			l.names++
		case e.Node != 0:
			o.pinLocked(e.Node)
		}
	}
	for _, l := range o.locals {
		o.reapLocked(l)
	}
	return s.Init, nil
}

func (o *overlay) loadNodesLocked() error {
	ents, err := os.ReadDir(o.keptIn)
	if err != nil {
		return fmt.Errorf("read kept files: %w", err)
	}
	for _, e := range ents {
		if !strings.HasPrefix(e.Name(), nodeName) || strings.HasSuffix(e.Name(), ".new") {
			continue
		}
		var k keptLocal
		if err := readWhole(filepath.Join(o.keptIn, e.Name()), &k); err != nil {
			return err
		}
		l := &local{
			id: k.ID, attr: k.Attr, mode: k.Mode, lookups: k.Lookups, opens: k.Opens, target: k.Target, xattrs: k.Xattrs, done: k.Done, linked: true, kept: true,
		}
		if k.File {
			if l.file, err = os.OpenFile(o.keptPath(dataName, k.ID), os.O_RDWR, 0); err != nil {
				return fmt.Errorf("open kept file: %w", err)
			}
		}
		o.locals[l.id] = l
		o.next = max(o.next, l.id&^localBit)
	}
	for _, e := range ents { // contents of a node that was just being made, or has just ended
		id, err := strconv.ParseUint(strings.TrimPrefix(e.Name(), dataName), 16, 63)
		if err != nil || !strings.HasPrefix(e.Name(), dataName) || o.locals[id|localBit] != nil {
			continue
		}
		if err := os.Remove(filepath.Join(o.keptIn, e.Name())); err != nil {
			return fmt.Errorf("remove file of no node: %w", err)
		}
	}
	return nil
}

func readWhole(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read what the daemon before has left: %w", err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}
