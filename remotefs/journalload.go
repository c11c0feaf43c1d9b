package remotefs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Finder is where LoadJournal looks for files.
type Finder struct {
	Roots []string // where the exported root may be, the surest first
	// Tasks are processes that have, or may have, descriptors of files without a name: those of the frozen tree.
	Tasks []int
}

// LoadJournal makes a standby of what a server that was killed has left in its JournalFile: its descriptors are opened anew. A file that isn't found any more is
// no node then: who asks for it gets ESTALE. lost are the paths that such files had.
func LoadJournal(path string, f Finder) (st *Standby, lost []string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read journal of files: %w", err)
	}
	raiseFiles()
	l := &loading{st: &Standby{blind: true}, finder: f, places: map[uint64]*found{}}
	if err := l.read(b); err != nil {
		return nil, nil, fmt.Errorf("read journal of files: %w", err)
	}
	if err := l.open(); err != nil {
		l.st.Close()
		return nil, nil, fmt.Errorf("open files of the journal again: %w", err)
	}
	l.st.blind = false
	slices.Sort(l.lost)
	return l.st, l.lost, nil
}

// found is what the journal says of a node or handle. A file may have several names, and it isn't known of a rename whether it took place: so each name that it may
// have is tried, the newest first.
type found struct {
	place
	more []string
}

// mostNames is how many names of a file are remembered.
const mostNames = 8

func (p *found) name(path string) {
	if path == "" || path == p.path || slices.Contains(p.more, path) {
		return
	}
	p.more = append([]string{path}, p.more[:min(len(p.more), mostNames-1)]...)
}

type loading struct {
	st     *Standby
	finder Finder
	places map[uint64]*found
	lost   []string

	held map[key]string // links to what the tasks have open
}

// read takes all entries that are whole.
func (l *loading) read(b []byte) error {
	for len(b) > 8 {
		n, sum := int(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
		if n > maxJournalEntry {
			return errJournal
		}
		if n > len(b)-8 {
			return nil
		}
		if crc32.Checksum(b[8:8+n], castagnoli) != sum {
			return fmt.Errorf("wrong checksum: %w", errJournal)
		}
		if err := l.entry(wire.NewDecoder(b[8 : 8+n])); err != nil {
			return err
		}
		b = b[8+n:]
	}
	return nil
}

func (l *loading) entry(d *wire.Decoder) error {
	var p *found
	if d.Bool() {
		p = &found{}
		p.get(d)
	}
	b := d.Rest()
	if d.Err() != nil || len(b) == 0 {
		return errJournal
	}
	m := wire.NewDecoder(b)
	switch kind := m.U8(); kind {
	case journalReset:
		clear(l.places)
	case journalNode, journalHandle:
		if p == nil {
			return errJournal
		}
		l.places[m.U64()] = p
	case journalGone, journalReleased:
		delete(l.places, m.U64())
	case journalNamed:
		if was := l.places[m.U64()]; was != nil && p != nil {
			was.name(p.path)
		}
		return m.Err()
	case journalMoved:
		from, to := m.String(wire.MaxFileLink), m.String(wire.MaxFileLink)
		for _, p := range l.places {
			p.moved(from, to)
		}
		return m.Err()
	}
	return l.st.Apply(b, -1)
}

// moved is a rename, of the file or of a directory that it lies in.
func (p *found) moved(from, to string) {
	for _, n := range append([]string{p.path}, p.more...) {
		if rest, ok := strings.CutPrefix(n, from); ok && (rest == "" || rest[0] == '/') {
			p.name(to + rest)
		}
	}
}

// open opens what the standby has.
func (l *loading) open() error {
	t := l.st.cur
	if t == nil {
		return fmt.Errorf("it is not whole: %w", errJournal)
	}
	root, err := l.root(t)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for id, n := range t.nodes {
		fd, err := l.node(root, l.places[id], n.hidden)
		if isShort(err) {
			return err
		}
		if n.fd = fd; fd < 0 {
			l.lost = append(l.lost, l.places[id].path)
			delete(t.nodes, id)
		}
	}
	for id, h := range t.handles {
		h.fd = -1
		if n := t.nodes[h.node]; n != nil { // else its file is lost, or has been forgotten, and nobody can read by it
			if h.fd, err = l.handle(n, h, l.places[id]); isShort(err) {
				return err
			}
			if h.fd < 0 {
				l.lost = append(l.lost, l.places[h.node].path)
			}
		}
		if h.fd < 0 {
			delete(t.handles, id)
		}
	}
	return nil
}

// root opens the exported root, for the time of the search.
func (l *loading) root(t *standing) (int, error) {
	n, p := t.nodes[wire.FileRootNode], l.places[wire.FileRootNode]
	if n == nil || p == nil {
		return -1, errJournal
	}
	var errs []error
	for _, path := range l.finder.Roots {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			var i identity
			if i, err = identityOf(fd); err == nil && i.same(p.file, n.hidden) {
				return fd, nil
			}
			_ = unix.Close(fd)
		}
		if err == nil {
			err = unix.ESTALE
		}
		errs = append(errs, fmt.Errorf("root of the tree at %s: %w", path, err))
	}
	return -1, errors.Join(append(errs, errors.New("it is found nowhere"))...)
}

// node opens a file that is certainly the same as before; -1: there is none.
func (l *loading) node(root int, p *found, hidden bool) (int, error) {
	if p == nil {
		return -1, errJournal
	}
	for _, name := range append(slices.Clone(p.more), p.path) {
		if name == "" {
			continue
		}
		fd, err := openBelow(root, name)
		if isShort(err) {
			return -1, err
		}
		if err == nil {
			if i, err := identityOf(fd); err == nil && i.same(p.file, hidden) {
				return fd, nil
			}
			_ = unix.Close(fd)
		}
	}
	link, ok := l.heldByTasks()[p.file.key]
	if !ok {
		return -1, unix.ESTALE
	}
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if i, err := identityOf(fd); err != nil || !i.same(p.file, hidden) {
		_ = unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

func (l *loading) handle(n *standNode, h *standHandle, p *found) (int, error) {
	if p == nil {
		return -1, errJournal
	}
	flags := int(p.flags)&keptFlags | unix.O_NONBLOCK | unix.O_NOCTTY
	if h.dir {
		flags = unix.O_RDONLY | unix.O_DIRECTORY
	}
	return unix.Open("/proc/self/fd/"+strconv.Itoa(n.fd), flags|unix.O_CLOEXEC, 0)
}

// heldByTasks finds what the tasks have open or mapped, under any name or none.
func (l *loading) heldByTasks() map[key]string {
	if l.held != nil {
		return l.held
	}
	l.held = map[key]string{}
	for _, pid := range l.finder.Tasks {
		proc := fmt.Sprintf("/proc/%d", pid)
		links := []string{proc + "/cwd", proc + "/exe"}
		for _, dir := range []string{"fd", "map_files"} {
			more, _ := filepath.Glob(filepath.Join(proc, dir, "*")) // the pattern is good
			links = append(links, more...)
		}
		for _, link := range links {
			fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				continue // not a file
			}
			if k, err := keyOf(fd); err == nil {
				l.held[k] = link
			}
			_ = unix.Close(fd)
		}
	}
	return l.held
}
