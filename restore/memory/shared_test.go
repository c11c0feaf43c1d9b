package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/kerneltest"
)

// sharers is a running e2e/testdata/sharer.c: processes that share two objects, of which nothing is there.
type sharers struct {
	t      testing.TB
	cmd    *exec.Cmd
	group  string // their cgroup
	sock   *fdpass.Socket
	status string
	pages  int
	tasks  []TaskMem
	uffds  map[uint32]*os.File
	stderr bytes.Buffer
	ended  chan struct{}
	err    error
}

const (
	theMemory      = objectBit
	theGenerations = objectBit + 1
)

func startSharers(t testing.TB, mb, processes int, how string) *sharers {
	t.Helper()
	group, err := os.MkdirTemp(kerneltest.CgroupRoot(t), "sharers")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	src, err := os.ReadFile("../../e2e/testdata/sharer.c")
	if err != nil {
		t.Fatal(err)
	}
	sock, peer, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	s := &sharers{t: t, group: group, sock: sock, status: filepath.Join(t.TempDir(), "status"), pages: mb << 8, uffds: map[uint32]*os.File{}, ended: make(chan struct{})}
	s.cmd = exec.Command(kerneltest.CompileC(t, string(src), "-pthread"), strconv.Itoa(mb), strconv.Itoa(processes), s.status, how, "3")
	s.cmd.ExtraFiles = []*os.File{peer}
	s.cmd.Stderr = &s.stderr
	s.cmd.SysProcAttr = &unix.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		_ = os.WriteFile(group+"/cgroup.kill", []byte("1"), 0)
		<-s.ended
		kerneltest.Eventually(t, "cgroup to be empty", func() bool { return os.Remove(group) == nil })
		sock.Close()
		if t.Failed() {
			t.Logf("%s%s", s.stderr.Bytes(), s.said())
		}
	})
	objects := map[uint32]uint64{theMemory: uint64(s.pages) * pageSize, theGenerations: uint64(s.pages) * 4}
	for range processes + 1 {
		var b [24]byte
		n, files, err := sock.Recv(b[:])
		if err != nil || n != len(b) || len(files) != 1 {
			t.Fatalf("receive userfaultfd: %d bytes, %d files, %v", n, len(files), err)
		}
		ne := binary.NativeEndian
		m := TaskMem{ID: uint32(ne.Uint64(b[:]))}
		for i, o := range []uint32{theMemory, theGenerations} {
			at := ne.Uint64(b[8+8*i:])
			m.Shared = append(m.Shared, SharedRange{Start: at, End: at + objects[o], Object: o})
		}
		s.tasks, s.uffds[m.ID] = append(s.tasks, m), files[0]
	}
	for _, o := range []uint32{theMemory, theGenerations} {
		s.tasks = append(s.tasks, TaskMem{ID: o, Regions: []Region{{End: objects[o]}}})
	}
	return s
}

// engine makes an engine for them, as a restore does.
func (s *sharers) engine(o Options) *Engine {
	t := s.t
	t.Helper()
	o.Tasks, o.Log = s.tasks, logTo(t)
	if o.Quiesce == nil {
		o.Quiesce = func(stop bool) error {
			v := "0"
			if stop {
				v = "1"
			}
			return os.WriteFile(s.group+"/cgroup.freeze", []byte(v), 0)
		}
	}
	e := New(o)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	for id, f := range s.uffds {
		if err := e.AddTask(id, f); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range s.tasks[0].Shared {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/map_files/%x-%x", s.tasks[0].ID, m.Start, m.End), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := e.Share(m.Object, f); err != nil {
			t.Fatal(i, err)
		}
		if err := e.Share(m.Object, f); !errors.Is(err, unix.EEXIST) {
			t.Errorf("shared twice: %v", err)
		}
	}
	for id := range s.uffds {
		if err := e.Join(id); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// release lets them run.
func (s *sharers) release() {
	s.t.Helper()
	for range s.uffds {
		if err := s.sock.Send([]byte{1}); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *sharers) said() string {
	b, _ := os.ReadFile(s.status)
	return string(b)
}

// rounds waits until they have done some more work.
func (s *sharers) more(n int) {
	s.t.Helper()
	rounds := func() int {
		var word string
		var k int
		_, _ = fmt.Sscan(s.said(), &word, &k)
		if word != "run" && word != "" {
			s.t.Fatalf("sharers say %q", s.said())
		}
		return k
	}
	before := rounds()
	kerneltest.Eventually(s.t, "sharers to go on", func() bool { return rounds() >= before+n })
}

// end has every process check every page, and demands that all were right.
func (s *sharers) end() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.ended:
		if s.err != nil {
			s.t.Fatalf("sharers: %v: %s", s.err, s.said())
		}
	case <-time.After(deadline):
		s.t.Fatalf("sharers do not end: %s", s.said())
	}
}

// sharedMix is sharer.c's.
func sharedMix(i, g, j uint64) uint64 {
	x := (i<<32 ^ g) + 0x9e3779b97f4a7c15*(j+1)
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 32
	return x | 1
}

// sharedPages is what the source has: generation 2 of each page, and every fifth empty.
func sharedPages(w Want) (runs []Run, data []byte) {
	ne := binary.NativeEndian
	for i := w.Addr / pageSize; i < w.Addr/pageSize+uint64(w.Pages); i++ {
		kind := Data
		switch {
		case w.Task == theGenerations:
			for k := range uint64(pageSize / 4) {
				g := uint32(2)
				if (i*pageSize/4+k)%5 == 4 {
					g = 1 << 31
				}
				data = ne.AppendUint32(data, g)
			}
		case i%5 == 4:
			kind = Zero
		default:
			for j := range uint64(pageSize / 8) {
				data = ne.AppendUint64(data, sharedMix(i, 2, j))
			}
		}
		if n := len(runs); n > 0 && runs[n-1].Kind == kind {
			runs[n-1].Pages++
		} else {
			runs = append(runs, Run{kind, 1})
		}
	}
	return runs, data
}

// TestShared lets processes check and change what they share while it comes: by faults alone, while it is pushed, by handlers that answer
// badly and are replaced all the time, and with mappings that are moved, doubled, cut, grown, dropped and forked.
func TestShared(t *testing.T) {
	for _, c := range []struct {
		name, how string
		bulk, bad bool
	}{
		{"faults only", "calm", false, false},
		{"push", "calm", true, false},
		{"churn, faults only", "churn", false, false},
		{"churn", "churn", true, false},
		{"churn, bad handlers", "churn", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			kerneltest.Leaks(t)
			s := startSharers(t, 16, 4, c.how)
			e := s.engine(Options{Window: 1, BulkPages: 1, FaultPages: 1})
			h := newHandler(e, 2)
			defer func() { h.stop() }()
			if c.bad {
				h.fail, h.corrupt, h.repeat = 0.05, 0.02, 0.1
			}
			h.objects = sharedPages
			e.SetBringer(h)
			s.release()
			s.more(500)
			if c.bulk {
				e.StartBulk()
			}
			for c.bad && e.Stats().Left > 0 {
				h.stop()
				old := h
				h = newHandler(e, 2)
				h.fail, h.corrupt, h.repeat, h.objects = old.fail, old.corrupt, old.repeat, old.objects
				e.SetBringer(h)
				s.more(200)
			}
			if c.bulk {
				waitDrained(t, e)
			}
			s.more(2000)
			s.end()
			st := e.Stats()
			t.Logf("%+v", st)
			if st.Faults == 0 || st.PagesCopied == 0 || st.LostPages+st.StrayPages+st.UnsureDrops > 0 || c.bulk && st.Spaces > 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}
