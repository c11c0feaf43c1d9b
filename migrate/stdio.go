package migrate

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/images"
	"github.com/lazymig/lazymig/preflight"
)

// Where standard streams go whose other end is outside of the tree (SourceOptions.Stdio).
const (
	StdioRelay   = "relay"   // to where they went, on the source
	StdioJournal = "journal" // to the target's journald
	StdioNull    = "null"
)

// CheckStdio says whether s is one of them, or a path on the target.
func CheckStdio(s string) bool {
	return s == StdioRelay || s == StdioJournal || s == StdioNull || strings.HasPrefix(s, "/")
}

const maxStdio = 30 // CRIU inherits so many files (package restore)

// stdioSlot is a pipe or socket that stands in for one that the tree shares with others on the source.
type stdioSlot struct {
	Key      string `json:"key"` // as CRIU names it: pipe:[123], socket:[123]
	To       string `json:"to"`
	Stream   uint32 `json:"stream"`
	Read     bool   `json:"read"` // by the tree
	Write    bool   `json:"write"`
	Nonblock bool   `json:"nonblock,omitempty"` // a socket; CRIU itself does it for pipes
}

var stdioKey = regexp.MustCompile(`^(pipe|socket):\[[0-9]{1,10}\]$`)

func (s *stdioSlot) check() error {
	if !stdioKey.MatchString(s.Key) || !CheckStdio(s.To) || !s.Read && !s.Write || s.Read && s.Write && !s.socket() || s.Stream >= maxStdio {
		return fmt.Errorf("standard stream %+v", *s)
	}
	return nil
}

func (s *stdioSlot) socket() bool { return strings.HasPrefix(s.Key, "socket:") }

// stdioObject is a pipe or socket of the source that descriptors of the tree have as a standard stream.
type stdioObject struct {
	stdioSlot
	all []preflight.Stdio // all descriptors of it
}

// stdioObjects are those that the preflight found.
func (s *Source) stdioObjects() []*stdioObject {
	return groupStdio(s.rep.Want.Stdio, cmp.Or(s.opt.Stdio, StdioRelay))
}

// groupStdio groups descriptors.
func groupStdio(list []preflight.Stdio, to string) []*stdioObject {
	var objs []*stdioObject
	by := map[string]*stdioObject{}
	for _, f := range list {
		o := by[f.Key]
		if o == nil {
			key := f.Key
			switch f.Kind {
			case "socket":
				key = fmt.Sprintf("socket:[%d]", f.Inode)
			case "fifo": // a pipe in the images, see changeFifos
				key = fmt.Sprintf("pipe:[%d]", fifoPipe(len(objs)))
			}
			o = &stdioObject{stdioSlot: stdioSlot{Key: key, To: to, Stream: uint32(len(objs))}}
			by[f.Key] = o
			objs = append(objs, o)
		}
		o.Read, o.Write = o.Read || f.Read, o.Write || f.Write
		o.all = append(o.all, f)
	}
	return objs
}

// Streams refuses standard streams that can't be given another end.
func Streams(w *preflight.Want) []preflight.Finding {
	var bad []preflight.Finding
	refuse := func(o *stdioObject, why string) {
		f := o.all[0]
		bad = append(bad, preflight.Finding{
			Code: "stdio", Level: preflight.Refuse, PID: f.PID,
			What: fmt.Sprintf("descriptor %d is a %s that %s outside of the tree holds", f.FD, f.Kind, orSomebody(f.Peer)), Why: why,
			Do: "start the process with its standard streams on files (nohup, >FILE 2>&1 </dev/null), or inside tmux and move that",
		})
	}
	for i, o := range groupStdio(w.Stdio, StdioRelay) {
		f := o.all[0]
		switch {
		case f.Kind != "pipe" && f.Kind != "socket" && f.Kind != "fifo":
			refuse(o, "half of it can't be moved")
		case f.Kind == "socket" && !f.Half:
			refuse(o, "only connected AF_UNIX stream sockets with the other end outside of the tree can be carried")
		case f.Kind != "socket" && o.Read && o.Write:
			refuse(o, "the tree has both ends of it, too")
		case i >= maxStdio:
			refuse(o, fmt.Sprintf("more than %d of them can't be carried", maxStdio))
		}
	}
	return bad
}

func orSomebody(s string) string {
	if s == "" {
		return "somebody"
	}
	return s
}

// stdioExternal is CRIU's list of the sockets that it dumps without their other end.
func (s *Source) stdioExternal() []string {
	var ext []string
	for _, o := range s.stdioObjects() {
		if o.socket() {
			ext = append(ext, o.all[0].Key)
		}
	}
	return ext
}

// fifoPipe is the number of a pipe that stands in for a FIFO. Real ones are counted from the other end.
func fifoPipe(stream int) uint32 { return ^uint32(stream) }

// changeFifos makes pipes of FIFOs in the images: a pipe can be given another end.
func (s *Source) changeFifos() error {
	pipes := map[uint32]uint32{}
	for i, o := range s.stdioObjects() {
		if f := o.all[0]; f.Kind == "fifo" {
			pipes[uint32(f.Inode)] = fifoPipe(i)
		}
	}
	if len(pipes) == 0 {
		return nil
	}
	return images.FifosToPipes(s.result.ImagesDir, pipes)
}

// sourceStreams are copies of the frozen tree's own descriptors, for the warden to read and write from the grant on.
type sourceStreams struct {
	specs []streamSpec
	files []*os.File
}

func (c *sourceStreams) close() {
	for _, f := range c.files {
		f.Close()
	}
	c.specs, c.files = nil, nil
}

// openStdio copies the frozen tree's own descriptors. Nothing is read or written before the grant.
func (s *Source) openStdio() ([]stdioSlot, error) {
	if err := s.changeFifos(); err != nil {
		return nil, err
	}
	for _, o := range s.stdioObjects() {
		f := o.all[0]
		s.notice("descriptor %d is a %s to %s; on the target it is: %s", f.FD, f.Kind, orSomebody(f.Peer), o.To)
	}
	return s.copyStreams()
}

// copyStreams makes s.streams.
func (s *Source) copyStreams() ([]stdioSlot, error) {
	var slots []stdioSlot
	for _, o := range s.stdioObjects() {
		f := o.all[0]
		if o.To != StdioRelay {
			slots = append(slots, o.stdioSlot)
			continue
		}
		if err := o.open(&s.streams); err != nil {
			return nil, fmt.Errorf("copy descriptor %d of %d: %w", f.FD, f.PID, err)
		}
		if o.Read || o.Write { // else it has been closed meanwhile
			slots = append(slots, o.stdioSlot)
		}
	}
	return slots, nil
}

// open adds the ends of one object to c.
func (o *stdioObject) open(c *sourceStreams) error {
	in, out := o.Read, o.Write // of the tree
	o.Read, o.Write = false, false
	for _, f := range o.all {
		if f.Read && in && !o.Read || f.Write && out && !o.Write {
			its, err := copyOf(f)
			if err != nil {
				return err
			}
			if its == nil {
				continue
			}
			err = o.add(c, its, f.Read && in && !o.Read, f.Write && out && !o.Write)
			its.Close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// add makes ends of its, which stays the caller's.
func (o *stdioObject) add(c *sourceStreams, its *os.File, read, write bool) error {
	end := func(out bool, flags int) error {
		var f *os.File
		var err error
		if o.socket() {
			f, err = dupFile(its)
		} else {
			var fd int
			if fd, err = reopen(its, flags); err == nil {
				f = os.NewFile(uintptr(fd), its.Name())
			}
		}
		if err == nil {
			c.specs, c.files = append(c.specs, streamSpec{Stream: o.Stream, Out: out, Socket: o.socket()}), append(c.files, f)
		}
		return err
	}
	if read {
		if err := end(true, unix.O_RDONLY); err != nil {
			return err
		}
		o.Read = true
	}
	if write {
		if err := end(false, unix.O_WRONLY); err != nil {
			return err
		}
		o.Write = true
	}
	fl, err := unix.FcntlInt(its.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("read flags: %w", err)
	}
	o.Nonblock = fl&unix.O_NONBLOCK != 0
	return nil
}

// copyOf copies a descriptor of a frozen task; nil: it is not what it was when the tree was looked at.
func copyOf(f preflight.Stdio) (*os.File, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", f.PID, f.FD)
	link, err := os.Readlink(path)
	if err != nil || link != f.Link {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(f.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("open pidfd: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, f.FD, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), link), nil
}

// lostStreams is for streams whose relay is gone.
func (s *Source) lostStreams() {
	for _, o := range s.stdioObjects() {
		if o.To == StdioRelay {
			s.relay = &relayLink{ended: true}
			s.notice("descriptor %d is not carried any more: what was on its way was lost with the warden", o.all[0].FD)
		}
	}
}

// startRelay is after the grant: from now on the warden reads and writes.
func (s *Source) startRelay() {
	if len(s.streams.specs) == 0 {
		return
	}
	s.soleSockets()
	link := s.warden.link()
	if err := link.streams(s.streams.specs, s.streams.files); err != nil {
		s.notice("standard streams are not carried: %v", err)
	}
	s.streams.close()
	s.relay = link.relay
	s.mu.Lock()
	s.carries = true
	s.mu.Unlock()
}

// soleSockets finds which sockets nobody but the tree has: an end that the tree sees may be passed on only there, because shutdown is
// for all that have the socket.
func (s *Source) soleSockets() {
	ends := map[string][]int{} // places in s.streams
	for _, o := range s.stdioObjects() {
		for i, x := range s.streams.specs {
			if o.socket() && x.Stream == o.Stream {
				ends[o.Key] = append(ends[o.Key], i)
			}
		}
	}
	if len(ends) == 0 {
		return
	}
	mine := map[string]bool{fmt.Sprint(os.Getpid()): true}
	for _, t := range s.result.Tasks {
		mine[fmt.Sprint(t.PID)] = true
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		s.log.Warn("look for other holders of standard streams", "err", err)
		return
	}
	for _, p := range procs {
		if mine[p.Name()] || p.Name()[0] < '0' || p.Name()[0] > '9' {
			continue
		}
		dir := "/proc/" + p.Name() + "/fd/"
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue // it has ended
		}
		for _, fd := range fds {
			if link, err := os.Readlink(dir + fd.Name()); err == nil {
				delete(ends, link)
			}
		}
	}
	for _, es := range ends {
		for _, i := range es {
			s.streams.specs[i].Sole = true
		}
	}
}
