package preflight

import (
	"fmt"
	"strings"
)

// Level says how much a finding matters.
type Level int

// The levels, in order of weight.
const (
	OK     Level = 0 // as wanted
	Info   Level = 1 // an option was set by itself, or a fallback is used
	Warn   Level = 2 // goes on, but somebody should know
	Refuse Level = 3 // the migration must not start
)

var levelNames = [...]string{"ok", "info", "warn", "refuse"}

// String names the level.
func (l Level) String() string {
	if l < 0 || int(l) >= len(levelNames) {
		return fmt.Sprintf("level %d", int(l))
	}
	return levelNames[l]
}

// MarshalText lets JSON show the name.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the name back.
func (l *Level) UnmarshalText(b []byte) error {
	for i, n := range levelNames {
		if n == string(b) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("unknown level %q", b)
}

// Finding is one thing seen. Code is stable and kebab-case, for scripts; PID is 0 when it is about a host.
type Finding struct {
	Code  string `json:"code"`
	Level Level  `json:"level"`
	PID   int    `json:"pid,omitempty"`
	What  string `json:"what"`
	Why   string `json:"why,omitempty"`
	Do    string `json:"do,omitempty"`
}

// String is one line for people.
func (f Finding) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", f.Level, f.What)
	if f.PID != 0 {
		fmt.Fprintf(&b, " (process %d)", f.PID)
	}
	if f.Why != "" {
		b.WriteString(": " + f.Why)
	}
	if f.Do != "" {
		b.WriteString("; " + f.Do)
	}
	return b.String() + " [" + f.Code + "]"
}

// Refused is the error of a preflight that found reasons not to start.
type Refused struct{ Findings []Finding }

// Error lists all reasons.
func (r *Refused) Error() string {
	lines := make([]string, 0, len(r.Findings)+1)
	lines = append(lines, fmt.Sprintf("preflight refused for %d reason(s)", len(r.Findings)))
	for _, f := range r.Findings {
		lines = append(lines, f.String())
	}
	return strings.Join(lines, "\n  ")
}

// Refusals is nil, or a *Refused with those findings that forbid the migration.
func Refusals(all []Finding) error {
	var bad []Finding
	for _, f := range all {
		if f.Level == Refuse {
			bad = append(bad, f)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return &Refused{Findings: bad}
}

// Report is what Process saw.
type Report struct {
	Findings []Finding `json:"findings"`
	Tree     Tree      `json:"tree"`
	Want     Want      `json:"want"`
}

// Err is a *Refused naming all refusals, or nil.
func (r *Report) Err() error { return Refusals(r.Findings) }

// Has says whether a finding with this code is there.
func (r *Report) Has(code string) bool {
	for _, f := range r.Findings {
		if f.Code == code {
			return true
		}
	}
	return false
}

// Tree describes the tree as it was looked at.
type Tree struct {
	Root          int               `json:"root"`
	Tasks         []Task            `json:"tasks"` // parents stand before their children
	HostName      string            `json:"host_name"`
	Groups        []uint32          `json:"groups"`         // the root task's supplementary groups
	MemoryPresent uint64            `json:"memory_present"` // bytes resident or in swap, summed over the tasks
	ThreadCount   int               `json:"thread_count"`
	Namespaces    map[string]string `json:"namespaces"` // of the root task: "net" → "net:[4026531840]"
	Foreign       []string          `json:"foreign"`    // which of them are not the caller's own
	Cgroup        Cgroup            `json:"cgroup"`
	Unit          string            `json:"unit,omitempty"` // systemd's service, if the tree is in one
	Listens       []Listen          `json:"listens"`        // addresses that it needs at the target
	LSMProfiles   []string          `json:"lsm_profiles"`   // other than unconfined
	EagerBytes    uint64            `json:"eager_bytes"`    // shared memory and deleted files: in the images
	FileBytes     uint64            `json:"file_bytes"`     // on disk, of all files open or mapped
}

// Task is one process of the tree.
type Task struct {
	PID       int      `json:"pid"`
	NSPid     int      `json:"ns_pid"` // in its own PID namespace
	PPID      int      `json:"ppid"`
	TIDs      []int    `json:"tids"`      // threads, in its own PID namespace, the leader first
	HostTIDs  []int    `json:"host_tids"` // the same as seen here
	Comm      string   `json:"comm"`
	State     string   `json:"state"` // one letter, as in stat
	StartTime uint64   `json:"start_time"`
	UID       uint32   `json:"uid"` // effective
	GID       uint32   `json:"gid"`
	Groups    []uint32 `json:"groups"`
	Umask     uint32   `json:"umask"`
	Memory    uint64   `json:"memory"`
}

// Cgroup holds the limits of the tree's cgroup v2, the tightest of its ancestors; empty: none.
type Cgroup struct {
	Path      string `json:"path"`
	MemoryMax uint64 `json:"memory_max"` // 0: no limit
	CPUMax    string `json:"cpu_max"`    // "quota period", empty: no limit
	PidsMax   uint64 `json:"pids_max"`
}

// Listen is an address that the tree receives at.
type Listen struct {
	Proto string `json:"proto"` // tcp, tcp6, udp, udp6
	Addr  string `json:"addr"`  // an IP address; "::" or "0.0.0.0" is any
	Port  uint16 `json:"port"`
}

// Want collects what the dump, the restore and the time after it have to do for this tree.
type Want struct {
	ShellJob       bool   `json:"shell_job"`
	TCPClose       bool   `json:"tcp_close"`
	GhostLimit     uint32 `json:"ghost_limit"` // 0: CRIU's default suffices
	TCPEstablished int    `json:"tcp_established"`
	TCPInside      int    `json:"tcp_inside"` // of these, with both ends in the tree
	// Datagrams are the names of sockets outside which datagram sockets of the tree are connected to; abstract ones begin with a zero byte.
	Datagrams []string `json:"datagrams"`
	Stdio     []Stdio  `json:"stdio"`
	Fixups    []Fixup  `json:"fixups"`
}

// Stdio is a descriptor of the tree onto standard input, output or error whose other side is outside of the tree.
type Stdio struct {
	PID   int    `json:"pid"`
	NSPid int    `json:"ns_pid"`
	FD    int    `json:"fd"`
	Kind  string `json:"kind"` // pipe, fifo, socket, tty
	Key   string `json:"key"`  // CRIU's name of it for inherit-fd and external: pipe:[N], unix[N], tty[rdev:dev]
	Link  string `json:"link"`
	Inode uint64 `json:"inode"`
	Read  bool   `json:"read"`
	Write bool   `json:"write"`
	Peer  string `json:"peer"` // "comm (pid)", or empty if unknown
	Half  bool   `json:"half"` // of a socket: a connected AF_UNIX stream with the other end outside of the tree
}

// Fixup is what one thread has and CRIU loses. Zero fields need nothing.
type Fixup struct {
	TID          int      `json:"tid"` // in its own PID namespace
	HostTID      int      `json:"host_tid"`
	Affinity     []uint64 `json:"affinity,omitempty"`
	TimerSlackNS uint64   `json:"timer_slack_ns,omitempty"`
	IOPrio       int      `json:"ioprio,omitempty"`
	KSM          bool     `json:"ksm,omitempty"` // PR_SET_MEMORY_MERGE, of the whole process
}
