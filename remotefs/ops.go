package remotefs

import "github.com/lazymig/lazymig/wire"

// op is one row of the table of operations.
type op struct {
	name    string
	changes bool // refused before the grant
	once    bool // may not be done again when its reply is lost; all that changes something, counts something or tells an error once
	frozen  bool // waits for the freeze if it says so, see seed.go
	aside   bool // no operation of the tree waits for its answer
	gone    bool // the node may have been forgotten: nobody waits for a release before the forget
	bulk    bool // waits for the budget
	handle  bool // begins with a handle, which may be one that is being opened
	fn      func(*Server, *request) error
}

var ops map[wire.Type]op

func init() {
	ops = map[wire.Type]op{
		wire.MsgFileLookup:      {name: "lookup", once: true, fn: (*Server).opLookup},
		wire.MsgFileForget:      {name: "forget", once: true, aside: true, fn: (*Server).opForget},
		wire.MsgFileGetAttr:     {name: "getattr", fn: (*Server).opGetAttr},
		wire.MsgFileSetAttr:     {name: "setattr", changes: true, once: true, fn: (*Server).opSetAttr},
		wire.MsgFileReadlink:    {name: "readlink", fn: (*Server).opReadlink},
		wire.MsgFileSymlink:     {name: "symlink", changes: true, once: true, fn: (*Server).opSymlink},
		wire.MsgFileMknod:       {name: "mknod", changes: true, once: true, fn: (*Server).opMknod},
		wire.MsgFileMkdir:       {name: "mkdir", changes: true, once: true, fn: (*Server).opMkdir},
		wire.MsgFileUnlink:      {name: "unlink", changes: true, once: true, fn: (*Server).opUnlink},
		wire.MsgFileRmdir:       {name: "rmdir", changes: true, once: true, fn: (*Server).opRmdir},
		wire.MsgFileRename:      {name: "rename", changes: true, once: true, fn: (*Server).opRename},
		wire.MsgFileLink:        {name: "link", changes: true, once: true, fn: (*Server).opLink},
		wire.MsgFileOpen:        {name: "open", once: true, fn: (*Server).opOpen},
		wire.MsgFileRead:        {name: "read", handle: true, fn: (*Server).opRead},
		wire.MsgFileWrite:       {name: "write", changes: true, once: true, fn: (*Server).opWrite},
		wire.MsgFileStatfs:      {name: "statfs", fn: (*Server).opStatfs},
		wire.MsgFileRelease:     {name: "release", once: true, aside: true, gone: true, fn: (*Server).opRelease},
		wire.MsgFileFsync:       {name: "fsync", once: true, handle: true, fn: (*Server).opFsync},
		wire.MsgFileSetXattr:    {name: "setxattr", changes: true, once: true, fn: (*Server).opSetXattr},
		wire.MsgFileGetXattr:    {name: "getxattr", fn: (*Server).opGetXattr},
		wire.MsgFileListXattr:   {name: "listxattr", fn: (*Server).opListXattr},
		wire.MsgFileRemoveXattr: {name: "removexattr", changes: true, once: true, fn: (*Server).opRemoveXattr},
		wire.MsgFileOpenDir:     {name: "opendir", once: true, fn: (*Server).opOpenDir},
		wire.MsgFileReadDir:     {name: "readdir", once: true, handle: true, fn: (*Server).opReadDir},
		wire.MsgFileCreate:      {name: "create", changes: true, once: true, fn: (*Server).opCreate},
		wire.MsgFileTmpfile:     {name: "tmpfile", changes: true, once: true, fn: (*Server).opTmpfile},
		wire.MsgFileFallocate:   {name: "fallocate", changes: true, once: true, fn: (*Server).opFallocate},
		wire.MsgFileLseek:       {name: "lseek", handle: true, fn: (*Server).opLseek},
		wire.MsgFileSeed:        {name: "seed", once: true, frozen: true, aside: true, fn: (*Server).opSeed},
		wire.MsgFileTree:        {name: "tree", once: true, fn: (*Server).opTree},
		wire.MsgFileCopyRange:   {name: "copy_file_range", changes: true, once: true, handle: true, fn: (*Server).opCopyRange},
		wire.MsgFileStream:      {name: "stream", changes: true, once: true, aside: true, fn: (*Server).opStream},
		wire.MsgFileOpenAs:      {name: "openas", once: true, gone: true, handle: true, aside: true, fn: (*Server).opOpenAs},

		wire.MsgFileExtents: {name: "extents", aside: true, fn: (*Server).opExtents},
		wire.MsgFileSum:     {name: "sum", aside: true, fn: (*Server).opSum},
		wire.MsgFileStamps:  {name: "stamps", aside: true, fn: (*Server).opStamps},
		wire.MsgFilePath:    {name: "path", aside: true, fn: (*Server).opPath},
		wire.MsgFileScan:    {name: "scan", aside: true, fn: (*Server).opScan},
		wire.MsgFileWriters: {name: "writers", aside: true, fn: (*Server).opWriters},
		wire.MsgFileOpens:   {name: "opens", aside: true, fn: (*Server).opOpens},
		wire.MsgFileBulk:    {name: "read in bulk", aside: true, bulk: true, fn: (*Server).opRead},
		wire.MsgFileRemove:  {name: "remove", changes: true, once: true, aside: true, fn: (*Server).opRemove},
	}
}
