package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/restore/detach"
	"github.com/lazymig/lazymig/restore/memory"
	"github.com/lazymig/lazymig/wire"
)

const (
	maxMessage    = wire.MaxPayload
	maxImages     = 100_000
	maxImageBytes = 8 << 30
	maxTasks      = 10_000
	maxHuge       = 8192 // ranges of huge pages, each of 2 MB
	maxThreads    = 1 << 20
	maxWord       = 255
	maxNote       = 4096
	maxLanes      = 16
	maxCPUs       = 1 << 16
	maxPaths      = 1000
)

const maxDatagrams = 64 // names of sockets, in a prepareMsg

// prepareMsg tells the target what is to come.
type prepareMsg struct {
	Host      string   `json:"host"`
	HostName  string   `json:"host_name"` // the tree's
	PIDs      []int32  `json:"pids"`      // all tasks and threads, in the tree's PID namespace
	Memory    uint64   `json:"memory"`
	MemoryMax string   `json:"memory_max,omitempty"`
	CPUMax    string   `json:"cpu_max,omitempty"`
	PidsMax   string   `json:"pids_max,omitempty"`
	Comm      string   `json:"comm"`
	Datagrams []string `json:"datagrams,omitempty"` // names of sockets outside that it sends to
	Stdio     string   `json:"stdio,omitempty"`     // where standard streams go, if the tree has any whose other end stays

	Until string   `json:"until,omitempty"`
	With  []string `json:"with,omitempty"`  // paths whose trees come along
	Local []string `json:"local,omitempty"` // directories that are the target's own

	Remote []string `json:"remote,omitempty"` // directories that stay on the source

	InPlace     bool     `json:"in_place,omitempty"`     // what With names and the tree uses goes to its own path
	UsesDirs    []string `json:"uses_dirs,omitempty"`    // that (uses.go)
	UsesFiles   []string `json:"uses_files,omitempty"`   //
	Overwrite   bool     `json:"overwrite,omitempty"`    // whatever is there
	RemoveFiles bool     `json:"remove_files,omitempty"` // what With names, from the source, when it lives here

	Cleartext bool `json:"cleartext,omitempty"` // lanes but control may come without TLS

	OnSourceLoss string `json:"on_source_loss,omitempty"` // LossWait (also if empty), LossKill
	LossAfterMS  int64  `json:"loss_after_ms,omitempty"`

	Connections     int `json:"connections,omitempty"`      // bulk lanes to begin with; 0: one
	MostConnections int `json:"most_connections,omitempty"` // to go up to if that helps
	Parts           int `json:"parts,omitempty"`            // ranges that the source takes in one request for pages; 0: one

	Token wire.Token `json:"token"`
}

// maxLossAfter is ten years.
const maxLossAfter = 10 * 365 * 24 * int64(time.Hour/time.Millisecond)

func (m *prepareMsg) check() error {
	if m.Connections < 0 || m.Connections > wire.MaxBulk || m.MostConnections < 0 || m.MostConnections > wire.MaxBulk {
		return fmt.Errorf("%d connections for pages, %d at most", m.Connections, m.MostConnections)
	}
	if m.Parts < 0 {
		return fmt.Errorf("%d ranges in a request for pages", m.Parts)
	}
	if m.OnSourceLoss != "" && !CheckLoss(m.OnSourceLoss) || m.LossAfterMS < 0 || m.LossAfterMS > maxLossAfter {
		return fmt.Errorf("on loss of the source %q, after %d ms", m.OnSourceLoss, m.LossAfterMS)
	}
	for _, s := range []string{m.Host, m.HostName, m.MemoryMax, m.CPUMax, m.PidsMax, m.Comm} { // they go to files, records and logs
		if len(s) > maxWord {
			return fmt.Errorf("%d bytes where a word is expected", len(s))
		}
	}
	if len(m.Stdio) > unix.PathMax {
		return fmt.Errorf("a path of %d bytes", len(m.Stdio))
	}
	if len(m.With)+len(m.Local) > maxPaths || len(m.Until) > maxWord {
		return fmt.Errorf("%d paths, until %q", len(m.With)+len(m.Local), m.Until)
	}
	if len(m.Remote) > MaxRemote {
		return fmt.Errorf("%d directories that stay", len(m.Remote))
	}
	if len(m.UsesDirs) > maxPaths || len(m.UsesFiles) > maxUses {
		return fmt.Errorf("%d directories and %d files that are used", len(m.UsesDirs), len(m.UsesFiles))
	}
	for _, p := range slices.Concat(m.With, m.Local, m.Remote, m.UsesDirs, m.UsesFiles) {
		if len(p) > unix.PathMax || !strings.HasPrefix(p, "/") {
			return errors.New("a path that is not absolute, or too long")
		}
	}
	if len(m.PIDs) == 0 || len(m.PIDs) > maxThreads {
		return fmt.Errorf("a tree of %d threads", len(m.PIDs))
	}
	for _, p := range m.PIDs {
		if p < 1 {
			return fmt.Errorf("PID %d", p)
		}
	}
	if len(m.Datagrams) > maxDatagrams {
		return fmt.Errorf("datagram sockets connected to %d others", len(m.Datagrams))
	}
	for _, n := range m.Datagrams {
		if !restore.ValidDatagram(n) {
			return fmt.Errorf("name of socket %q", n)
		}
	}
	return nil
}

// restoreMsg comes when all images have been sent.
type restoreMsg struct {
	Root     int32             `json:"root"`
	Tasks    []memory.TaskMem  `json:"tasks"`
	TCPClose bool              `json:"tcp_close"`
	ShellJob bool              `json:"shell_job"`
	Fixups   []preflight.Fixup `json:"fixups,omitempty"`
	Stdio    []stdioSlot       `json:"stdio,omitempty"`

	Databases []restore.Database `json:"databases,omitempty"`
	Locks     []detach.Lock      `json:"locks,omitempty"`

	Mode  string `json:"mode,omitempty"`  // ModePost if empty
	Ahead bool   `json:"ahead,omitempty"` // MsgAheadGood follows
}

func (m *restoreMsg) check() error {
	if m.Mode != "" && !CheckMode(m.Mode) {
		return fmt.Errorf("mode %.20q", m.Mode)
	}
	if len(m.Tasks) == 0 || len(m.Tasks) > maxTasks {
		return fmt.Errorf("%d tasks", len(m.Tasks))
	}
	if len(m.Fixups) > maxThreads {
		return fmt.Errorf("%d fixups", len(m.Fixups))
	}
	for _, f := range m.Fixups {
		if f.TID < 1 || len(f.Affinity) > maxCPUs/64 {
			return fmt.Errorf("fixup of thread %d with %d words of CPUs", f.TID, len(f.Affinity))
		}
	}
	if len(m.Databases) > maxDatabases || len(m.Locks) > maxDatabases {
		return fmt.Errorf("%d databases, %d locks", len(m.Databases), len(m.Locks))
	}
	for _, d := range m.Databases {
		if d.PID < 1 || d.FD < 0 || d.Addr > 1<<47 || d.File > 1<<47 {
			return fmt.Errorf("database of process %d, descriptor %d, at %#x", d.PID, d.FD, d.Addr)
		}
	}
	if len(m.Stdio) > maxStdio {
		return fmt.Errorf("%d standard streams", len(m.Stdio))
	}
	for _, s := range m.Stdio {
		if err := s.check(); err != nil {
			return err
		}
	}
	huge := 0
	for _, t := range m.Tasks {
		for _, h := range t.Huge {
			if huge++; huge > maxHuge || h[1] == 0 || h[0] > 1<<26 || h[1] > 1<<26 {
				return fmt.Errorf("range %d of huge pages: %d from %d on", huge, h[1], h[0])
			}
		}
	}
	sizes := map[uint32]uint64{} // of shared objects
	for _, t := range m.Tasks {
		if !memory.IsObject(t.ID) {
			continue
		}
		if len(t.Regions) != 1 || t.Regions[0].Start != 0 || len(t.Shared) > 0 || sizes[t.ID] != 0 {
			return fmt.Errorf("shared memory %#x is not one", t.ID)
		}
		sizes[t.ID] = t.Regions[0].End
	}
	for _, t := range m.Tasks {
		for _, r := range t.Shared {
			if r.End <= r.Start || (r.Start|r.End|r.Offset)&4095 != 0 || r.End > 1<<47 || r.Offset > 1<<47 || r.Offset+r.End-r.Start > sizes[r.Object] {
				return fmt.Errorf("memory %#x-%#x of task %d, shared, is out of bounds", r.Start, r.End, t.ID)
			}
		}
		var end uint64
		for _, r := range t.Regions {
			if r.Start < end || r.End <= r.Start || (r.Start|r.End)&4095 != 0 || r.End > 1<<47 {
				return fmt.Errorf("region %#x-%#x of task %d is out of order or bounds", r.Start, r.End, t.ID)
			}
			end = r.End
		}
	}
	return nil
}

type clockMsg struct {
	Sent int64 `json:"sent"` // ns, CLOCK_REALTIME of who asked
	Here int64 `json:"here"` // ns, of who answered
}

type heldMsg struct {
	RestoreMS float64 `json:"restore_ms"`
	FillMS    float64 `json:"fill_ms,omitempty"` // after that: memory
}

type resumedMsg struct {
	At  int64 `json:"at"` // ns, the target's CLOCK_REALTIME
	PID int   `json:"pid"`
}

// progressMsg is also the payload of MsgDrained.
type progressMsg struct {
	Left       uint64  `json:"left"` // bytes
	Copied     uint64  `json:"copied"`
	Faults     uint64  `json:"faults"`
	FaultP50US float64 `json:"fault_p50_us"`
	FaultP99US float64 `json:"fault_p99_us"`
	StallMS    float64 `json:"stall_ms,omitempty"`

	Prefetched   uint64 `json:"prefetched,omitempty"`
	PrefetchHits uint64 `json:"prefetch_hits,omitempty"`

	Hot uint64 `json:"hot,omitempty"` // bytes that were asked for first

	Cores []string `json:"cores,omitempty"` // dumped before the drain, not whole
}

func (m *progressMsg) check() error { return checkCores(m.Cores) }

type exitedMsg struct {
	Status int      `json:"status"` // wait status of the root task
	Cores  []string `json:"cores,omitempty"`
}

// note is for records.
func (m *exitedMsg) note() string {
	return trim(strings.Join(append([]string{fmt.Sprintf("status %d", m.Status)}, m.Cores...), "; "))
}

func (m *exitedMsg) check() error { return checkCores(m.Cores) }

const maxCores = 16 // that are told

func checkCores(all []string) error {
	if len(all) > maxCores {
		return fmt.Errorf("%d core dumps", len(all))
	}
	for _, c := range all {
		if len(c) > maxNote {
			return fmt.Errorf("text of %d bytes about a core dump", len(c))
		}
	}
	return nil
}

// dialMsg asks the source to dial lanes (again).
type dialMsg struct {
	Lanes []wire.Lane `json:"lanes"`
}

// stateMsg opens a control connection: where the source stands; the answer: where the target stands.
type stateMsg struct {
	State State      `json:"state"`
	Note  string     `json:"note,omitempty"`
	Token wire.Token `json:"token,omitzero"` // the source's: only who began a migration goes on with it
}

func (m *stateMsg) check() error {
	if len(m.State) > maxWord || len(m.Note) > maxNote {
		return fmt.Errorf("state of %d bytes, note of %d", len(m.State), len(m.Note))
	}
	return nil
}

func (m *dialMsg) check() error {
	if len(m.Lanes) > maxLanes {
		return fmt.Errorf("%d lanes", len(m.Lanes))
	}
	return nil
}

// trim bounds a text for people that goes into a message or a record.
func trim(note string) string { return note[:min(len(note), maxNote)] }

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // own types only
	}
	return b
}

// errMessage says that a message of the peer is not what it should be.
var errMessage = errors.New("message of peer")

func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %w: %w", errMessage, err)
	}
	if c, ok := v.(interface{ check() error }); ok {
		if err := c.check(); err != nil {
			return fmt.Errorf("%w: %w", errMessage, err)
		}
	}
	return nil
}

// imageName is what CRIU 4.2 calls its images (criu/image-desc.c), and ours beside them.
var imageName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,120}\.(img|bin)$`)

var errImageName = errors.New("name of an image")

func checkImageName(n string) error {
	if !imageName.MatchString(n) {
		return fmt.Errorf("%w: %q", errImageName, n)
	}
	return nil
}
