package store

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// how says what becomes of a directory.
type how int

const (
	howNone   how = iota // not in the store
	howExpand            // itself, and what of it is decided one by one
	howMove              // with all that is in it
	howBind              // an empty directory, over which the target's own will be mounted
)

// object is one file or directory of the source that is in the store, or to be. Guarded by Store.pass, and by Store.mu where it says so.
type object struct {
	node, ino uint64
	typ       uint32 // type bits of the mode
	rdev      uint32
	held      bool // one lookup at the source is this object's
	names     map[place]struct{}
	hidden    bool // has a name in the hidden directory
	made      bool // exists in the store
	must      bool // can't be the target's own: the tree has written there, or it is to come
	needed    bool // is there also where its directory is only expanded
	size      int64
	xattrs    bool          // the copy has some
	attr      wire.FileAttr // the source's, of the copy that is verified
	stamped   bool          // a change of the source's file since then would show
	fd        int           // directories: O_PATH, in the store; -1
	how       how           // directories
	from      string        // howBind: the target's own
	declared  bool          // howBind: by somebody, not because it is equal
	only      string        // howExpand: the one name of it that comes
	survey    *summary      // directories
	asked     string        // the path that a survey is to be made of

	applied map[string]*object // names in the store

	// mu
	listing map[string]*object // names at the source, as far as known; nil: not listed yet
	relist  bool               // names have changed
	listed  wire.FileTime      // the directory's mtime when it was listed
	failed  string             // why it can't be copied
	look    bool               // attributes have changed
	bare    bool               // no extended attributes
	own     bool               // the tree has changed it since it was stamped
	data    ranges             // to be copied
	check   ranges             // copied, to be verified
	right   bool               // the copy holds what the source's file does, as of all that has been told
	suspect bool               // it looks as if somebody else had changed it
	gone    bool               // dropped
	in      bool               // made
}

type place struct {
	dir  *object
	name string
}

func (o *object) isDir() bool { return o.typ == unix.S_IFDIR }
func (o *object) isReg() bool { return o.typ == unix.S_IFREG }

// dirtyLocked says whether something is left to be done.
func (o *object) dirtyLocked() bool {
	return o.relist || o.look || len(o.data) > 0 || len(o.check) > 0
}

func (o *object) hiddenName() string { return strconv.FormatUint(o.node, 16) }

// where is a place at which the copy can be reached.
func (s *Store) where(o *object) (dir int, name string, err error) {
	if o.hidden {
		return s.hidden, o.hiddenName(), nil
	}
	for p := range o.names {
		return p.dir.fd, p.name, nil
	}
	return -1, "", fmt.Errorf("copy of inode %d has no name: %w", o.ino, unix.ENOENT)
}

// open opens the copy.
func (s *Store) open(o *object, flags int) (int, error) {
	if o.isDir() && o.fd >= 0 && flags&unix.O_PATH != 0 {
		return unix.FcntlInt(uintptr(o.fd), unix.F_DUPFD_CLOEXEC, 3)
	}
	dir, name, err := s.where(o)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open copy %q: %w", name, err)
	}
	return fd, nil
}

// make makes an empty copy in the hidden directory.
func (s *Store) make(o *object, target string) error {
	if o.made {
		return nil
	}
	name := o.hiddenName()
	var err error
	switch o.typ {
	case unix.S_IFDIR:
		err = unix.Mkdirat(s.hidden, name, 0o700)
	case unix.S_IFLNK:
		err = unix.Symlinkat(target, s.hidden, name)
	default:
		err = unix.Mknodat(s.hidden, name, o.typ|0o600, int(o.rdev))
	}
	if err != nil {
		return fmt.Errorf("make copy of inode %d: %w", o.ino, err)
	}
	if o.isDir() {
		if o.fd, err = unix.Openat(s.hidden, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
			_ = unix.Unlinkat(s.hidden, name, unix.AT_REMOVEDIR) // made again when there are descriptors
			return fmt.Errorf("open copy of inode %d: %w", o.ino, err)
		}
	}
	o.made, o.hidden, o.size = true, true, 0
	s.mu.Lock()
	defer s.mu.Unlock()
	o.in = true
	s.dirty[o] = struct{}{}
	s.touched[o]++
	return nil
}

// path is where the copy is below the root, "" if nowhere.
func (s *Store) path(o *object) string {
	if o == s.root {
		return "/"
	}
	for p := range o.names {
		switch up := s.path(p.dir); up {
		case "":
		case "/":
			return "/" + p.name
		default:
			return up + "/" + p.name
		}
	}
	if o.hidden {
		return "/" + hiddenDir + "/" + o.hiddenName()
	}
	return ""
}
