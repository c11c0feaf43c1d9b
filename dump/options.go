package dump

import (
	"log/slog"
	"time"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/wire"
)

// Options of a dump. PID is needed; the zero value of the others works.
type Options struct {
	PID        int    // root of the tree, as this process sees it
	CriuPath   string // both empty: criu.Find decides
	CriuPrefix string
	WorkDir    string // on a tmpfs; empty: a directory is made by images.MakeDir, and removed by Close
	Disk       string // for images.MakeDir: a directory, whatever file system it has; empty: images stay in memory
	ID         wire.ID
	Log        *slog.Logger

	TCPClose    bool // established connections are closed at the target
	ShellJob    bool
	Datagrams   bool     // some of its sockets are connected to datagram sockets outside, by name
	GhostLimit  uint32   // 0: CRIU's
	External    []string // CRIU's: what it need not dump, such as unix[INODE]
	Unhidden    bool     // hide nothing: the dump takes as long as the memory is large
	EagerShared bool     // hide no shared memory: the target can't take it lazily
	GrantRecord string   // a file: if it exists and holds GrantMark when this process is gone, the keeper does not thaw
	GrantMark   string   // empty: existing is enough
	KeeperArgv  []string

	hooks hooks
}

// hooks are called by tests at points where something is to go wrong.
type hooks struct {
	noBPF     bool
	prepared  func(criu int)
	beforeAck func(criu int)
	script    func(script string, criu int)
}

// Region is a mapping that `criu restore --lazy-pages` registers with its userfaultfd: private, anonymous, one VMA.
type Region struct {
	Start, End uint64
	Prot       uint32
	WipeOnFork bool // zero in a child
	Empty      bool // no page in it: all of it reads as zeros
}

// ObjectBit is set in the IDs of shared memory, which stand among those of tasks.
const ObjectBit = 1 << 31

// Object is shared memory that was hidden: anonymous or a memfd, mapped in one or several tasks, open in none.
type Object struct {
	ID         uint32 `json:"id"`
	Inode      uint64 `json:"inode"`
	Size       uint64 `json:"size"` // up to the end of what is mapped
	PID        int    `json:"pid"`  // a process that has mapped it, as this process sees it
	Start, End uint64 // there
	Bytes      uint64 `json:"-"` // present or swapped

	name  string // a memfd's; empty: anonymous
	memfd images.Memfd
	file  uint32 // its number among the files of the images
}

// SharedRange is a mapping of an object.
type SharedRange struct {
	Start, End uint64
	Object     uint32
	Offset     uint64
}

// HugeRange is a range of transparent huge pages, in units of HugeSize.
type HugeRange struct{ First, N uint64 }

// Task is a live process of the tree.
type Task struct {
	ID        uint32   // its PID in its own PID namespace, as in the images
	PID       int      // its PID as this process sees it
	StartTime uint64   // of /proc/PID/stat
	TIDs      []uint32 // its threads, in its own PID namespace, its own ID among them
	Regions   []Region // in order of address
	Shared    []SharedRange
	Huge      []HugeRange // at the snapshot
	Bytes     uint64      // present or swapped in Regions, at the snapshot
}

// Page is one whole page of a task.
type Page struct {
	Task uint32
	Addr uint64
	Data []byte
}

// Result of a freeze.
type Result struct {
	ImagesDir   string
	Tasks       []Task
	Objects     []Object
	Zombies     []uint32 // IDs of dead children that nobody has waited for
	FrozenAt    time.Time
	Threads     int
	DumpMS      float64  // from the freeze to the complete images
	TCPClosed   int      // established connections, which the target will find closed
	Early       []Page   // to be placed before the tree runs
	Eager       []string // shared memory that was dumped within the freeze, and why
	Unhidden    string   // why nothing was hidden; empty: it was
	Again       int      // processes whose snapshot was taken again because their maps had changed
	Cgroup      string   // of the frozen tree, below the cgroup v2 mount
	MemoryBytes uint64   // of all tasks
}
