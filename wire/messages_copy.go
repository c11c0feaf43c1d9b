package wire

// Files lane, for copying files while they are used (package lazyfs/store). Form and rules are those of messages_files.go; all but MsgFileRemove only read.
const (
	MsgFileExtents Type = 380 // where a file has data
	MsgFileSum     Type = 382 // SHA-256 of a range, see remotefs.Digest
	MsgFileStamps  Type = 384 // attributes of many nodes
	MsgFilePath    Type = 386 // where a node is
	MsgFileScan    Type = 388 // a directory, with all that two copies of it are compared by
	MsgFileWriters Type = 390 // which of some nodes processes of the source can write
	MsgFileOpens   Type = 392 // what is open
	MsgFileRemove  Type = 394 // a file that has moved is no longer needed at the source
	MsgFileBulk    Type = 396 // MsgFileRead for nobody who waits: after all else when the line is shared
)

// Limits of these.
const (
	MaxFileExtents = 16 << 10 // in one MsgFileExtents
	MaxFileStamps  = 8 << 10  // nodes in one MsgFileStamps or MsgFileWriters
	MaxFileOpens   = 60 << 10 // nodes in the reply to MsgFileOpens
	MaxFileSum     = 64 << 20 // bytes in one MsgFileSum
	MaxFilePath    = 32 << 10 // bytes of a path
	FileBlock      = 4096     // ranges of MsgFileSum begin and end at multiples of this, or end with the file
	FileSumSize    = 32       // bytes of a digest
)

// FileExtent is a range that holds data.
type FileExtent struct{ Start, End int64 }

// FileScanned is one name of a scanned directory. Sum is what remotefs.Describe says.
type FileScanned struct {
	Name string
	Attr FileAttr
	Sum  [FileSumSize]byte
}

// Put appends f.
func (f *FileScanned) Put(e *Encoder) {
	e.String(f.Name)
	f.Attr.Put(e)
	e.B = append(e.B, f.Sum[:]...)
}

// Get takes f.
func (f *FileScanned) Get(d *Decoder) {
	f.Name = d.String(MaxFileName)
	f.Attr.Get(d)
	for i := range f.Sum {
		f.Sum[i] = d.U8()
	}
}
