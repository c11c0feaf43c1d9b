package wire

// FileSeed is what the target is told of a name before it asks: whoever looks it up there needs no round trip then.
type FileSeed struct {
	Dir     uint64
	Name    string
	Entry   FileEntry    // node 0: there is no such name; else a lookup that counts
	Link    string       // of a symbolic link: its target
	Handles []FileOpened // open already
	Data    []FileRange  // of the contents, worth to be there before they are read
}

// FileOpened is an open file and the flags that it was opened with.
type FileOpened struct {
	Flags  uint32
	Handle uint64
}

// FileRange is a part of a file.
type FileRange struct{ Off, Len uint64 }

// Put appends f.
func (f *FileSeed) Put(e *Encoder) {
	e.U64(f.Dir)
	e.String(f.Name)
	f.Entry.Put(e)
	e.String(f.Link)
	e.U32(uint32(len(f.Handles)))
	for _, h := range f.Handles {
		e.U32(h.Flags)
		e.U64(h.Handle)
	}
	e.U32(uint32(len(f.Data)))
	for _, r := range f.Data {
		e.U64(r.Off)
		e.U64(r.Len)
	}
}

// Get takes f.
func (f *FileSeed) Get(d *Decoder) {
	f.Dir, f.Name = d.U64(), d.String(MaxFileName)
	f.Entry.Get(d)
	f.Link = d.String(MaxFileLink)
	f.Handles = make([]FileOpened, d.Count(12))
	for i := range f.Handles {
		f.Handles[i] = FileOpened{Flags: d.U32(), Handle: d.U64()}
	}
	f.Data = make([]FileRange, d.Count(16))
	for i := range f.Data {
		f.Data[i] = FileRange{Off: d.U64(), Len: d.U64()}
	}
}
