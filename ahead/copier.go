package ahead

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// Process is one of the running tree.
type Process struct {
	ID  uint32 // as the target knows it
	PID int    // as this process sees it
}

// Options of a Copier. Borrow and Send must be set.
type Options struct {
	// Borrow makes a process call what gives it a descriptor, and takes that.
	Borrow func(pid int, nr uint64, args ...uint64) (*os.File, error)
	// CloseIn lets a process close a descriptor.
	CloseIn func(pid, fd int) error
	// Send takes pages; it keeps nothing of them. The spans of a batch hold exactly the bytes.
	Send func(Batch) error
	// Compare: pages are compared, nothing is tracked. Borrow and CloseIn are not called then.
	Compare bool
	// Room is how many bytes the target takes.
	Room uint64
	Log  *slog.Logger
}

// Batch is some pages of one process, as they were when they were read.
type Batch struct {
	ID   uint32
	Runs []Run
	Data []byte
}

// Run is adjacent pages of a batch.
type Run struct {
	Addr  uint64
	Pages uint32
}

// BatchPages is the most pages of a batch.
const BatchPages = 64

// Round is what one round did.
type Round struct {
	Sent     uint64 // bytes
	Took     time.Duration
	Excluded []int // processes that are left out because of O_DIRECT, as far as it is new
}

// Copier copies the memory of one tree ahead. See the package's doc.
type Copier struct {
	o      Options
	log    *slog.Logger
	spaces map[uint32]*space
	room   uint64 // pages
	batch  Batch
	key    []byte // of sums; nil: nothing is compared
}

// Supported says whether the kernel can track writes.
func Supported() bool {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly, 0, 0)
	if errno != 0 {
		return false
	}
	defer unix.Close(int(fd))
	return pagemap.Probe().Scan && begin(int(fd)) == nil
}

// New makes a copier.
func New(o Options) *Copier {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Copier{
		o: o, log: o.Log, spaces: map[uint32]*space{}, room: o.Room / pageSize,
		batch: Batch{Data: make([]byte, 0, BatchPages*pageSize)},
	}
	if o.Compare {
		c.key = newKey()
	}
	return c
}

// Track begins to track the processes of the tree that are not tracked yet. One that can't be is left out. tree lists those that there
// are now.
func (c *Copier) Track(tree func() ([]Process, error)) error {
	all, err := tree()
	if err != nil {
		return err
	}
	fresh := false
	for _, p := range all {
		if s := c.spaces[p.ID]; s != nil {
			if s.pid == p.PID && !s.gone() {
				continue
			}
			c.forget(s)
		}
		fresh = true
		var compared *sums
		if c.o.Compare {
			compared = newSums(c.key)
		}
		s, err := open(func(pid int) (*os.File, error) {
			return c.o.Borrow(pid, unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK|userModeOnly)
		}, p, compared)
		if err != nil {
			c.log.Info("process is not copied ahead", "pid", p.PID, "why", err)
			continue
		}
		c.spaces[p.ID] = s
	}
	if !fresh || c.o.Compare {
		return nil
	}
	if all, err = tree(); err != nil {
		return err
	}
	return c.closeStrays(all)
}

// closeStrays closes copies of our userfaultfds that a fork has left in a child. The preflight has refused trees that have some of their own.
func (c *Copier) closeStrays(all []Process) error {
	for _, p := range all {
		dir := fmt.Sprintf("/proc/%d/fd", p.PID)
		ents, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, e := range ents {
			l, err := os.Readlink(dir + "/" + e.Name())
			if err != nil || !strings.Contains(l, "[userfaultfd]") {
				continue
			}
			var fd int
			if _, err = fmt.Sscan(e.Name(), &fd); err == nil {
				err = c.o.CloseIn(p.PID, fd)
			}
			if err != nil {
				return fmt.Errorf("close userfaultfd of this migration that process %d has got by a fork: %w", p.PID, err)
			}
		}
	}
	return nil
}

func (c *Copier) forget(s *space) {
	s.close()
	delete(c.spaces, s.id)
}

func (c *Copier) each(f func(*space) error) error {
	for _, id := range slices.Sorted(maps.Keys(c.spaces)) {
		s := c.spaces[id]
		err := f(s)
		if err != nil && s.gone() {
			c.forget(s)
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Protect is the beginning of a round: what Dirty tells then has been written since.
func (c *Copier) Protect() error {
	return c.each(func(s *space) error {
		err := s.protect()
		if err == nil && s.sums != nil {
			s.sums.begin(s.mem, s.pending)
		}
		return err
	})
}

// protect adds to what is to be read.
func (s *space) protect() error {
	if s.excluded {
		return nil
	}
	if err := s.look(); err != nil {
		return err
	}
	fresh, err := s.written()
	s.pending = s.pending.with(fresh)
	return err
}

// Round sends what has been written since the round before; the first one all.
func (c *Copier) Round(ctx context.Context) (r Round, err error) {
	began := time.Now()
	err = c.each(func(s *space) error {
		if s.excluded {
			return nil
		}
		if err := s.protect(); err != nil {
			return err
		}
		return c.read(ctx, s, &r, math.MaxUint64)
	})
	r.Took = time.Since(began)
	return r, err
}

// Some sends so many bytes of what Protect has found; the next round sends the rest.
func (c *Copier) Some(ctx context.Context, bytes uint64) (r Round, err error) {
	began := time.Now()
	err = c.each(func(s *space) error { return c.read(ctx, s, &r, bytes) })
	r.Took = time.Since(began)
	return r, err
}

// read sends what of a process is protected and has not been read, until r is so large.
func (c *Copier) read(ctx context.Context, s *space, r *Round, limit uint64) error {
	if s.excluded {
		return nil
	}
	todo := s.pending.both(s.known)
	s.pending = nil
	bypassed, err := false, error(nil)
	if s.sums == nil { // what is compared is so after the freeze, when nothing is on its way any more
		bypassed, err = direct(s.pid)
	} else {
		s.sums.probe = nil
	}
	if err != nil {
		return err
	}
	if bypassed {
		s.excluded = true
		s.sent = newPages()
		r.Excluded = append(r.Excluded, s.pid)
		return nil
	}
	for i, t := range todo {
		if t.start, err = c.copy(ctx, s, t, r, limit); err != nil {
			return err
		}
		if t.start < t.end {
			s.pending = append(spans{t}, todo[i+1:]...)
			break
		}
	}
	return c.flush(r)
}

// copy reads pages into the batch, and sends that whenever it is full. It says how far it came.
func (c *Copier) copy(ctx context.Context, s *space, t span, r *Round, limit uint64) (uint64, error) {
	for t.start < t.end && r.Sent < limit {
		if ctx.Err() != nil {
			return t.start, context.Cause(ctx)
		}
		have := len(c.batch.Data)
		n := span{t.start, min(t.end, t.start+uint64(cap(c.batch.Data)-have))}
		if s.held.missing(n) > c.room {
			if n.end = n.start + c.room*pageSize; n.end <= n.start {
				n.end = n.start + pageSize
			}
			if s.held.missing(n) > c.room { // what there is no room for stays where it is
				t.start = n.end
				continue
			}
		}
		got, err := unix.Pread(int(s.mem.Fd()), c.batch.Data[have:have+int(n.end-n.start)], int64(n.start))
		if err == unix.EINTR {
			continue
		}
		n.end = n.start + uint64(max(got, 0))&^(pageSize-1)
		if n.end <= n.start { // unmapped meanwhile, or poisoned
			t.start += pageSize
			continue
		}
		c.batch.ID = s.id
		take := func(n span) {
			s.sent.set(n)
			c.room -= s.held.missing(n)
			s.held.set(n)
			c.batch.Runs = append(c.batch.Runs, Run{Addr: n.start, Pages: uint32((n.end - n.start) / pageSize)})
		}
		left := int(n.end - n.start)
		if s.sums != nil {
			left = s.changed(n, c.batch.Data[have:have+left], take)
		} else {
			take(n)
		}
		c.batch.Data = c.batch.Data[:have+left]
		t.start = n.end
		if len(c.batch.Data) == cap(c.batch.Data) {
			if err := c.flush(r); err != nil {
				return t.start, err
			}
		}
	}
	return t.start, nil
}

func (c *Copier) flush(r *Round) error {
	if len(c.batch.Data) == 0 {
		return nil
	}
	err := c.o.Send(c.batch)
	r.Sent += uint64(len(c.batch.Data))
	c.batch.Data, c.batch.Runs = c.batch.Data[:0], c.batch.Runs[:0]
	return err
}

// Dirty is how many bytes have been written since the last round. f gets each run of pages that was; it may be nil.
func (c *Copier) Dirty(f func(id uint32, addr, pages uint64)) (bytes uint64, err error) {
	bytes, _, err = c.dirtyRuns(f)
	return bytes, err
}

// DirtyRuns also says in how many runs of adjacent pages they lie.
func (c *Copier) DirtyRuns() (bytes uint64, runs int, err error) { return c.dirtyRuns(nil) }

func (c *Copier) dirtyRuns(f func(id uint32, addr, pages uint64)) (bytes uint64, runs int, err error) {
	err = c.each(func(s *space) error {
		n, r, err := s.dirty(f)
		bytes += n * pageSize
		runs += r
		return err
	})
	return bytes, runs, err
}

// Good tells, of the frozen tree, which pages' copies are good: f gets words of 64 pages. processes are those that will be restored.
func (c *Copier) Good(processes []Process, f func(id uint32, addr, mask uint64) error) (bytes uint64, err error) {
	for _, p := range processes {
		s := c.spaces[p.ID]
		if s == nil || s.pid != p.PID || s.excluded {
			continue
		}
		g, err := s.good()
		if err != nil {
			return bytes, err
		}
		if err := g.words(func(addr, mask uint64) error { return f(s.id, addr, mask) }); err != nil {
			return bytes, err
		}
		bytes += uint64(g.n) * pageSize
	}
	return bytes, nil
}

// Close ends the tracking: nothing of it is left in the tree.
func (c *Copier) Close() {
	for _, s := range c.spaces {
		c.forget(s)
	}
}

// ErrUnsupported says that writes can't be tracked here.
var ErrUnsupported = errors.New("this kernel can't track writes (Linux 6.7 can, on x86-64)")
