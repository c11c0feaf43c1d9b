package migrate

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// Side tells whose record it is.
type Side string

// The sides.
const (
	SideSource Side = "source"
	SideTarget Side = "target"
)

// Entry is one line of a record.
type Entry struct {
	Time  time.Time `json:"time"`
	State State     `json:"state"`
	Side  Side      `json:"side"`
	Peer  string    `json:"peer,omitempty"`
	PID   int       `json:"pid,omitempty"`  // root task, as its host sees it
	Boot  string    `json:"boot,omitempty"` // boot ID of the host that wrote it: after a boot nothing that is named here lives
	Note  string    `json:"note,omitempty"` // why, for people
}

// grantMark stands in a source's record from the grant on, and never before: the keeper looks for it.
const grantMark = `"state":"granted"`

// Record is the durable history of one migration on one side: STATE-DIR/ID.SIDE/record, one JSON line an entry, each with
// a checksum before it, appended and fsynced. A torn last line (a crash while it was written) counts as not written.
type Record struct {
	Dir string
	ID  wire.ID

	mu   sync.Mutex
	f    *os.File
	last Entry
	size int64 // of the file up to last
	prev Entry // the one before last, for Withdraw
	upTo int64 // size up to prev
	torn bool  // a write failed: behind size there may be anything
}

// recordDir is the directory of one migration on one side; both sides may be on one host.
func recordDir(stateDir string, id wire.ID, side Side) string {
	return filepath.Join(stateDir, id.String()+"."+string(side))
}

// LogPath is where the source's process of a migration logs.
func LogPath(stateDir string, id wire.ID) string { return filepath.Join(stateDir, id.String()+".log") }

// DropLog removes the log of a migration that was refused, or failed, before it had a record: nobody could forget it.
func DropLog(stateDir string, id wire.ID) {
	if _, err := os.Stat(recordDir(stateDir, id, SideSource)); errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(LogPath(stateDir, id)) // it may never have been made
	}
}

// NewRecord makes the directory and writes the first entry.
func NewRecord(stateDir string, id wire.ID, first Entry) (*Record, error) {
	dir := recordDir(stateDir, id, first.Side)
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make record of migration %v: %w", id, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "record"), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
	if err != nil {
		_ = os.Remove(dir)
		return nil, fmt.Errorf("make record of migration %v: %w", id, err)
	}
	r := &Record{Dir: dir, ID: id, f: f}
	if err := r.append(first); err != nil {
		f.Close()
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := syncDirs(dir, stateDir); err != nil {
		f.Close()
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return r, nil
}

func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
		err = d.Sync()
		d.Close()
		if err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}

// Enter writes that the state is now s; it is on disk when Enter returns nil.
func (r *Record) Enter(s State, note string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.last
	e.State, e.Note = s, trim(note)
	return r.append(e)
}

// TakeBack writes that a grant is void, which is no step of the state machine: on the source with the proof that the tree never ran on the target, on
// the target when what held the tree is dead and has never let it go.
func (r *Record) TakeBack(note string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.last
	if e.State != Granted && (e.Side != SideSource || e.State != LostTree) {
		return fmt.Errorf("record of migration %v: %q can't be taken back", r.ID, e.State)
	}
	e.State, e.Note = Aborted, trim(note)
	return r.write(e)
}

func (r *Record) append(e Entry) error {
	if err := r.last.State.to(e.State); err != nil {
		return fmt.Errorf("record of migration %v: %w", r.ID, err)
	}
	return r.write(e)
}

func (r *Record) write(e Entry) error {
	if err := r.mend(); err != nil {
		return err
	}
	e.Time = time.Now()
	e.Boot = bootID()
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record of migration %v: %w", r.ID, err)
	}
	line := fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(b), b)
	if _, err = r.f.Write(line); err == nil {
		err = r.harden(e.State)
	}
	if err != nil { // part of the line, or all of it, may be in the file, and on the disk
		r.torn = true
		return errors.Join(fmt.Errorf("write record of migration %v: %w", r.ID, err), r.mend())
	}
	r.prev, r.upTo = r.last, r.size
	r.last, r.size = e, r.size+int64(len(line))
	return nil
}

// mend takes out of the file what a write that failed may have left there: another line must not be joined to half of one, and a grant that
// was not recorded must not be found by the keeper.
func (r *Record) mend() error {
	if !r.torn {
		return nil
	}
	err := r.f.Truncate(r.size)
	if err == nil {
		err = r.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("mend record of migration %v: %w", r.ID, err)
	}
	r.torn = false
	return nil
}

// Sure says that the file, also after a crash, holds what Last says and nothing else. After an error it may say more: a grant, perhaps.
func (r *Record) Sure() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mend()
}

// Withdraw takes the last entry back: a grant that nobody has been told of, and that turns out to be wrong.
func (r *Record) Withdraw() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.size, r.torn = r.prev, r.upTo, true
	return r.mend()
}

// Last is the newest entry.
func (r *Record) Last() Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// Close closes the file; the record stays.
func (r *Record) Close() error { return r.f.Close() }

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // absent in a bare /proc: then unknown
	return string(bytes.TrimSpace(b))
}

// readRecord yields all entries of a record file. Only the last line may be torn.
func readRecord(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	defer f.Close()
	var all []Entry
	var bad error
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if bad != nil {
			return nil, bad
		}
		e, err := parseEntry(sc.Bytes())
		if err != nil {
			bad = fmt.Errorf("read record %s, line %d: %w", path, len(all)+1, err)
			continue
		}
		all = append(all, e)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read record %s: %w", path, err)
	}
	return all, nil
}

func parseEntry(line []byte) (Entry, error) {
	sum, b, ok := bytes.Cut(line, []byte(" "))
	if !ok || fmt.Sprintf("%08x", crc32.ChecksumIEEE(b)) != string(sum) {
		return Entry{}, errors.New("checksum does not match")
	}
	var e Entry
	if err := json.Unmarshal(b, &e); err != nil {
		return Entry{}, err
	}
	return e, nil
}

// Known is a migration that a state directory has a record of.
type Known struct {
	ID      wire.ID
	Dir     string
	Entries []Entry
}

// Last is the newest entry, zero if none is whole.
func (k Known) Last() Entry {
	if len(k.Entries) == 0 {
		return Entry{}
	}
	return k.Entries[len(k.Entries)-1]
}

// List reads all records of a state directory, oldest first. One that can't be read is told and does not hide the others.
func List(stateDir string) ([]Known, error) {
	ents, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var all []Known
	var errs []error
	for _, d := range ents {
		id, err := wire.ParseID(trimSide(d.Name()))
		if err != nil {
			continue
		}
		dir := filepath.Join(stateDir, d.Name())
		entries, err := readRecord(filepath.Join(dir, "record"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(entries) == 0 { // made this moment, or a crash before its first entry
			continue
		}
		all = append(all, Known{ID: id, Dir: dir, Entries: entries})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Entries[0].Time.Before(all[j].Entries[0].Time) })
	return all, errors.Join(errs...)
}

func trimSide(name string) string {
	for _, s := range []Side{SideSource, SideTarget} {
		if n := len(name) - len(s) - 1; n > 0 && name[n:] == "."+string(s) {
			return name[:n]
		}
	}
	return name
}

// Forget removes the record of an ended migration.
func Forget(stateDir string, id wire.ID) error {
	all, err := List(stateDir)
	found := false
	for _, k := range all {
		if k.ID != id {
			continue
		}
		found = true
		if s := k.Last().State; !s.Final() {
			return fmt.Errorf("forget migration %v: it is in state %q and not over (%s)", id, s, k.Dir)
		}
		root := filepath.Join(k.Dir, "root") // of a tree that lives there, or has left its files there
		if ents, err := os.ReadDir(root); err == nil && len(ents) > 0 {
			return fmt.Errorf("forget migration %v: the files of the tree are in %s; when it has ended and they are not needed any more, remove them first", id, root)
		}
		if err := errors.Join(os.RemoveAll(k.Dir), os.RemoveAll(LogPath(stateDir, id))); err != nil {
			return fmt.Errorf("forget migration %v: %w", id, err)
		}
	}
	if !found {
		return errors.Join(fmt.Errorf("forget migration %v: %s has no record of it", id, stateDir), err)
	}
	return nil
}

// openRecord goes on with a record that an earlier process wrote. A torn last line is cut off.
func openRecord(k Known) (*Record, error) {
	path := filepath.Join(k.Dir, "record")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open record: %w", err)
	}
	var whole int64
	b, err := io.ReadAll(f)
	for line := range bytes.Lines(b) {
		if _, perr := parseEntry(bytes.TrimSuffix(line, []byte("\n"))); perr != nil || !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		whole += int64(len(line))
	}
	if err == nil && whole < int64(len(b)) {
		err = f.Truncate(whole)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open record: %w", err)
	}
	return &Record{Dir: k.Dir, ID: k.ID, f: f, last: k.Last(), size: whole}, nil
}
