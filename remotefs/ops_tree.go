package remotefs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// opTree: how many names to look up here, and how many below → count, directories: first this one, then some below it, the nearest first.
// Who walks a tree on a long line gets it in few round trips. Each entry counts as a lookup.
func (s *Server) opTree(r *request) error {
	here, below := int(min(r.d.U32(), wire.MaxFileTree)), int(min(r.d.U32(), wire.MaxFileTree))
	if err := r.end(); err != nil {
		return err
	}
	if r.node.mode != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	r.e.U32(0)
	inside, whole, err := s.treeDir(r, r.node, &here)
	if err != nil {
		return err
	}
	count := uint32(1)
	for whole && len(inside) > 0 && below > 0 {
		n, err := s.tab.get(inside[0]) // its lookup has just been counted
		inside = inside[1:]
		if err != nil {
			continue
		}
		began := len(r.e.B)
		more, w, err := s.treeDir(r, n, &below)
		s.tab.put(n)
		if err != nil { // told to who looks itself
			r.e.B = r.e.B[:began]
			continue
		}
		whole = w // else there is no room
		inside = append(inside, more...)
		count++
	}
	binary.BigEndian.PutUint32(r.e.B, count)
	return nil
}

// treeDir adds a directory to the reply, looks up as many of its names as are left to look up, and gives the directories among them. Not whole: the
// reply is full.
func (s *Server) treeDir(r *request, dir *node, left *int) (inside []uint64, whole bool, err error) {
	r.e.U64(dir.id)
	at := len(r.e.B)
	r.e.Bool(true)
	r.e.U32(0)
	if dir.fs.hidden {
		return nil, true, nil
	}
	fd, err := s.reopen(dir.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 32<<10)
	count := uint32(0)
	whole = true
	for whole {
		n, err := retry(func() (int, error) { return unix.Getdents(fd, buf) })
		if err != nil {
			return nil, false, err
		}
		if n == 0 {
			break
		}
		for rest := buf[:n]; len(rest) > 0; {
			ent, n, err := parseDirent(rest)
			if err != nil {
				return nil, false, err
			}
			rest = rest[n:]
			if len(r.e.B)+len(ent.Name)+32+wire.FileAttrSize > wire.MaxFileDir {
				whole = false
				break
			}
			if err := s.fill(r, dir, &ent, *left > 0); err != nil {
				return nil, false, err
			}
			if ent.Entry.Node != 0 {
				*left--
				if ent.Entry.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
					inside = append(inside, ent.Entry.Node)
				}
			}
			ent.Put(&r.e)
			count++
		}
	}
	if !whole || !listsAll(fd) {
		r.e.B[at] = 0
	}
	binary.BigEndian.PutUint32(r.e.B[at+1:], count)
	return inside, whole, nil
}

// exactFS are file systems where a name that no directory lists does not exist. Elsewhere there may be hidden ones (.snapshot), or names that are made by
// looking them up.
var exactFS = map[uint32]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true, unix.RAMFS_MAGIC: true,
	unix.OVERLAYFS_SUPER_MAGIC: true, unix.SQUASHFS_MAGIC: true, unix.EROFS_SUPER_MAGIC_V1: true, unix.F2FS_SUPER_MAGIC: true,
}

// listsAll says that a name that is not listed does not exist.
func listsAll(fd int) bool {
	const casefold = 0x40000000 // FS_CASEFOLD_FL of linux/fs.h: other spellings exist, too
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || !exactFS[uint32(st.Type)] {
		return false
	}
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	return err != nil || flags&casefold == 0 // a file system without flags folds nothing
}
