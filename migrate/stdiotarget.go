package migrate

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore"
)

// targetStdio is what stands in for the tree's standard streams here, in the carrier's process.
type targetStdio struct {
	relay    *relay
	inherits []restore.Inherit   // until the restore
	ours     map[uint32]*os.File // other ends of these and what a successor needs (keptID), for the guardian; until that has them
	sinks    []*sink
	rec      *streamRecord // nil: there is no relay
	fds      []int         // of keptBytes and keptQueue
	wg       sync.WaitGroup

	mu   sync.Mutex          // guards what follows
	ends map[uint32]int      // how many ends of a stream are open here
	drop func(stream uint32) // called when there is none any more; nil: nothing
}

// openStdio makes what CRIU gives the tree instead. name tells journald whose lines come.
func openStdio(slots []stdioSlot, name string, log *slog.Logger) (*targetStdio, error) {
	st := &targetStdio{relay: newRelay(), ours: map[uint32]*os.File{}, ends: map[uint32]int{}}
	seen := map[uint32]bool{}
	for _, s := range slots {
		if seen[s.Stream] {
			st.close()
			return nil, fmt.Errorf("standard stream %d is there twice", s.Stream)
		}
		seen[s.Stream] = true
		if err := st.open(s, name, log); err != nil {
			st.close()
			return nil, fmt.Errorf("make what stands in for %s: %w", s.Key, err)
		}
	}
	return st, nil
}

// open makes the two ends of one object: the tree's, and ours.
func (st *targetStdio) open(s stdioSlot, name string, log *slog.Logger) error {
	if s.To == StdioNull && !s.socket() {
		f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err == nil {
			st.inherits = append(st.inherits, restore.Inherit{Key: s.Key, File: f})
		}
		return err
	}
	tree, ours, err := endsOf(s)
	if err != nil {
		return err
	}
	st.inherits = append(st.inherits, restore.Inherit{Key: s.Key, File: tree})
	defer func() {
		if st.ends[s.Stream] == 0 { // nothing is read or written here
			ours.Close()
			return
		}
		st.ours[s.Stream] = ours
	}()
	end := func() (*streamEnd, error) { return st.end(s.Stream, ours, s.socket()) }
	if s.Read { // by the tree
		if s.To == StdioRelay {
			e, err := end()
			if err == nil {
				err = st.keepIn(s.Stream, e)
			}
			if err != nil {
				return err
			}
		} else if s.socket() {
			_ = unix.Shutdown(int(ours.Fd()), unix.SHUT_WR) // nothing ever comes
		}
	}
	if !s.Write {
		return nil
	}
	var to sinkFile
	if s.To != StdioRelay {
		if to, err = sinkTo(s.To, name); err != nil {
			return err
		}
	}
	e, err := end()
	if err != nil {
		if to != nil {
			to.Close()
		}
		return err
	}
	if to == nil {
		return st.keepOut(s.Stream, e)
	} else {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()))
		if err != nil {
			e.close()
			to.Close()
			return fmt.Errorf("look at own end: %w", err)
		}
		if s.Read && s.To != StdioNull && s.To != StdioJournal {
			link = "" // a file that is written can't be what is read, too
		}
		st.sinks = append(st.sinks, &sink{link: link, end: e, to: to, log: log})
	}
	return nil
}

// end copies our end for one direction.
func (st *targetStdio) end(stream uint32, ours *os.File, socket bool) (*streamEnd, error) {
	fd, err := unix.FcntlInt(ours.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("copy descriptor: %w", err)
	}
	e, err := newStreamEnd(fd, socket, true)
	if err == nil {
		st.ends[stream]++
		e.onClose = func() { st.closed(stream) }
	}
	return e, err
}

func endsOf(s stdioSlot) (tree, ours *os.File, err error) {
	var p [2]int // read, write
	if s.socket() {
		p, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	} else {
		err = unix.Pipe2(p[:], unix.O_CLOEXEC)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make ends: %w", err)
	}
	t, o := p[0], p[1]
	if s.Write {
		t, o = o, t
	}
	err = unix.SetNonblock(o, true) // splice(2) to a socket waits else
	if err == nil && s.socket() && s.Nonblock {
		err = unix.SetNonblock(t, true)
	}
	tree, ours = os.NewFile(uintptr(t), s.Key), os.NewFile(uintptr(o), s.Key)
	if err != nil {
		tree.Close()
		ours.Close()
		return nil, nil, fmt.Errorf("make ends: %w", err)
	}
	return tree, ours, nil
}

// restored closes the tree's ends, which the tree has now.
func (st *targetStdio) restored() {
	for _, i := range st.inherits {
		i.File.Close()
	}
	for _, f := range st.ours {
		f.Close()
	}
	st.inherits, st.ours = nil, nil
}

// closed is called when an end has been closed.
func (st *targetStdio) closed(stream uint32) {
	st.mu.Lock()
	st.ends[stream]--
	last, drop := st.ends[stream] == 0, st.drop
	st.mu.Unlock()
	if last && drop != nil {
		drop(stream)
	}
}

const dropTime = 10 * time.Second

func (st *targetStdio) start() {
	if st == nil {
		return
	}
	st.relay.start()
	for _, s := range st.sinks {
		st.wg.Go(s.run)
	}
}

func (st *targetStdio) close() {
	if st == nil {
		return
	}
	st.restored()
	st.relay.close()
	for _, s := range st.sinks {
		s.stop()
	}
	st.wg.Wait()
	for _, s := range st.sinks {
		s.close() // if it was never started
		s.to.Close()
	}
	for _, fd := range st.fds {
		unix.Close(fd)
	}
	st.fds = nil
	st.rec.close()
}

// streams is the relay, nil if there is none yet.
func (st *targetStdio) streams() *relay {
	if st == nil {
		return nil
	}
	return st.relay
}
