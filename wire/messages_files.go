package wire

// Files lane: package remotefs. A request is even, its reply is the number plus 1, a failure is MsgError.
// Each request but MsgFileAttach begins with count u16, count × request ID u64 (answered requests that the server need not
// remember any more), then node u64, uid and gid (u32 each) of the caller; PROTOCOL.md tells what follows.
const (
	MsgFileLookup      Type = 300 // name → entry
	MsgFileForget      Type = 302 // counts of lookups to take back
	MsgFileGetAttr     Type = 304
	MsgFileSetAttr     Type = 306
	MsgFileReadlink    Type = 308
	MsgFileSymlink     Type = 310
	MsgFileMknod       Type = 312
	MsgFileMkdir       Type = 314
	MsgFileUnlink      Type = 316
	MsgFileRmdir       Type = 318
	MsgFileRename      Type = 320
	MsgFileLink        Type = 322
	MsgFileOpen        Type = 324
	MsgFileRead        Type = 326
	MsgFileWrite       Type = 328
	MsgFileStatfs      Type = 330
	MsgFileRelease     Type = 332
	MsgFileFsync       Type = 334
	MsgFileSetXattr    Type = 336
	MsgFileGetXattr    Type = 338
	MsgFileListXattr   Type = 340
	MsgFileRemoveXattr Type = 342
	MsgFileOpenDir     Type = 344
	MsgFileReadDir     Type = 346
	MsgFileCreate      Type = 348
	MsgFileTmpfile     Type = 350
	MsgFileFallocate   Type = 352
	MsgFileLseek       Type = 354
	MsgFileCopyRange   Type = 356
	MsgFileAttach      Type = 358 // first on each connection, ID 0: who asks, 16 bytes; later connections of the same replace the one before → IDs of kept answers
	MsgFileSeed        Type = 360 // what the target will want to know → seeds; the second one waits for the freeze
	MsgFileTree        Type = 362 // all names of a directory, and of some below
	MsgFileOpenAs      Type = 364 // MsgFileOpen or MsgFileOpenDir for reading, under a handle that the client names: what follows need not wait for the answer
	MsgFileStream      Type = 366 // MsgFileWrite that nobody waits for: all that comes later on the lane for the same node is done after it
)

// Limits of the files lane.
const (
	FileRootNode = 1          // the node that is always there
	MaxFileIO    = 1 << 20    // bytes in one read or write
	MaxFileName  = 255        // bytes in a name
	MaxFileLink  = 4095       // bytes in the target of a symbolic link
	MaxFileXattr = 64 << 10   // bytes in the value of an extended attribute, or in the list of names
	MaxFileDir   = 512 << 10  // bytes in one piece of a directory
	MaxFileTree  = 4096       // names that are looked up in one directory of a MsgFileTree, or in all below it
	MaxForgets   = 32 << 10   // nodes in one MsgFileForget
	FileAttrSize = 8*6 + 4*10 // bytes of an encoded FileAttr

	MaxFileSeeds    = 900 << 10 // bytes of seeds in one reply: what is more is not told
	FileReadAhead   = 512 << 10 // bytes that the target's kernel reads around a page, or ahead
	FileSessionSize = 16        // bytes of MsgFileAttach
	MaxFileAcks     = 1024      // requests that one more says to be answered, and answers that a server remembers
)

// FileCaller is who asks: the credentials that the operation runs with.
type FileCaller struct {
	UID, GID uint32

	// Number, unless 0, names a request so that it is done once even if it is asked again by another client of the session, which takes the
	// place of one that died. Below 1 << 63; the frame's ID, not part of the message. One number, one operation that is done once.
	Number uint64
}

// Bits of FileAttr.Flags. That one is not told means nothing.
const (
	FileBare  = 1 // the file has no extended attributes at all
	FileOpens = 2 // nothing but the target's own rules can refuse to open it for reading
	FileStill = 4 // reading it now does not change its attributes
)

// FileOwnHandle marks handles that a client has named.
const FileOwnHandle = 1 << 62

// FileTime is a time as the kernel keeps it.
type FileTime struct {
	Sec  int64
	Nsec uint32
}

// FileAttr is what stat tells. Ino is unique over all file systems of the source.
type FileAttr struct {
	Ino, Size, Blocks     uint64
	Atime, Mtime, Ctime   FileTime
	Mode, Nlink, UID, GID uint32
	Rdev, Blksize         uint32
	Flags                 uint32
}

// Put appends a.
func (a *FileAttr) Put(e *Encoder) {
	e.U64(a.Ino)
	e.U64(a.Size)
	e.U64(a.Blocks)
	for _, t := range []FileTime{a.Atime, a.Mtime, a.Ctime} {
		e.I64(t.Sec)
		e.U32(t.Nsec)
	}
	for _, v := range []uint32{a.Mode, a.Nlink, a.UID, a.GID, a.Rdev, a.Blksize, a.Flags} {
		e.U32(v)
	}
}

// Get takes a.
func (a *FileAttr) Get(d *Decoder) {
	a.Ino, a.Size, a.Blocks = d.U64(), d.U64(), d.U64()
	for _, t := range []*FileTime{&a.Atime, &a.Mtime, &a.Ctime} {
		t.Sec, t.Nsec = d.I64(), d.U32()
	}
	for _, v := range []*uint32{&a.Mode, &a.Nlink, &a.UID, &a.GID, &a.Rdev, &a.Blksize, &a.Flags} {
		*v = d.U32()
	}
}

// FileEntry is a node that has been looked up: it stays until as many lookups are forgotten. Node 0: there is none.
type FileEntry struct {
	Node uint64
	Attr FileAttr
}

// Put appends f.
func (f *FileEntry) Put(e *Encoder) { e.U64(f.Node); f.Attr.Put(e) }

// Get takes f.
func (f *FileEntry) Get(d *Decoder) { f.Node = d.U64(); f.Attr.Get(d) }

// What FileSetAttr changes.
const (
	FileSetMode     = 1 << 0
	FileSetUID      = 1 << 1
	FileSetGID      = 1 << 2
	FileSetSize     = 1 << 3
	FileSetAtime    = 1 << 4
	FileSetMtime    = 1 << 5
	FileSetHandle   = 1 << 6 // Handle is the open file to truncate
	FileSetAtimeNow = 1 << 7
	FileSetMtimeNow = 1 << 8
	FileSetKillPriv = 1 << 11 // take set-user-ID and set-group-ID away as for a caller without CAP_FSETID
)

// FileSetAttr is a change of attributes; Valid says which.
type FileSetAttr struct {
	Valid          uint32
	Handle         uint64
	Size           uint64
	Atime, Mtime   FileTime
	Mode, UID, GID uint32
}

// Put appends s.
func (s *FileSetAttr) Put(e *Encoder) {
	e.U32(s.Valid)
	e.U64(s.Handle)
	e.U64(s.Size)
	for _, t := range []FileTime{s.Atime, s.Mtime} {
		e.I64(t.Sec)
		e.U32(t.Nsec)
	}
	e.U32(s.Mode)
	e.U32(s.UID)
	e.U32(s.GID)
}

// Get takes s.
func (s *FileSetAttr) Get(d *Decoder) {
	s.Valid, s.Handle, s.Size = d.U32(), d.U64(), d.U64()
	for _, t := range []*FileTime{&s.Atime, &s.Mtime} {
		t.Sec, t.Nsec = d.I64(), d.U32()
	}
	s.Mode, s.UID, s.GID = d.U32(), d.U32(), d.U32()
}

// FileStatfs is what statfs tells.
type FileStatfs struct {
	Blocks, Bfree, Bavail, Files, Ffree uint64
	Bsize, Namelen, Frsize              uint32
}

// Put appends s.
func (s *FileStatfs) Put(e *Encoder) {
	for _, v := range []uint64{s.Blocks, s.Bfree, s.Bavail, s.Files, s.Ffree} {
		e.U64(v)
	}
	e.U32(s.Bsize)
	e.U32(s.Namelen)
	e.U32(s.Frsize)
}

// Get takes s.
func (s *FileStatfs) Get(d *Decoder) {
	for _, v := range []*uint64{&s.Blocks, &s.Bfree, &s.Bavail, &s.Files, &s.Ffree} {
		*v = d.U64()
	}
	s.Bsize, s.Namelen, s.Frsize = d.U32(), d.U32(), d.U32()
}

// FileDirent is one name in a directory. Off is the position after it; Type the type bits of the mode.
type FileDirent struct {
	Off, Ino uint64
	Type     uint32
	Name     string
	Entry    FileEntry // Node 0: not looked up
}

// Put appends f.
func (f *FileDirent) Put(e *Encoder) {
	e.U64(f.Off)
	e.U64(f.Ino)
	e.U32(f.Type)
	e.String(f.Name)
	e.Bool(f.Entry.Node != 0)
	if f.Entry.Node != 0 {
		f.Entry.Put(e)
	}
}

// Get takes f.
func (f *FileDirent) Get(d *Decoder) {
	f.Off, f.Ino, f.Type, f.Name = d.U64(), d.U64(), d.U32(), d.String(MaxFileName)
	if d.Bool() {
		f.Entry.Get(d)
	}
}

// FileTree is a directory with its names, in the order of their positions. Entries are looked up as in MsgFileReadDir.
type FileTree struct {
	Node  uint64
	Whole bool // there are no other names
	Names []FileDirent
}

// Get takes f.
func (f *FileTree) Get(d *Decoder) {
	f.Node, f.Whole = d.U64(), d.Bool()
	f.Names = make([]FileDirent, d.Count(8+8+4+4+1))
	for i := range f.Names {
		f.Names[i].Get(d)
	}
}

// FileForget takes back lookups of a node.
type FileForget struct{ Node, Count uint64 }

// What Write is told beside the offset.
const (
	FileWriteAppend   = 1 << 0 // at the end, wherever that is
	FileWriteKillPriv = 1 << 1 // as FileSetKillPriv
)
