package lazyfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// streams waits until writes to f are streamed: the first ones may wait for the source, until it has said how much room there is.
func (r *rig) streams(f *os.File, b []byte) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if n, _, _ := r.streamed(); n > 0 {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("no write is streamed")
		}
		_, err := f.WriteAt(b, 0)
		must(r.t, err)
	}
}

func (r *rig) streamed() (writes, rooms, pending int) {
	r.t.Helper()
	if _, err := fmt.Sscanf(r.say("streamed", "streamed"), "streamed %d rooms %d pending %d", &writes, &rooms, &pending); err != nil {
		r.t.Fatal(err)
	}
	return writes, rooms, pending
}

func (r *rig) awaitRooms(n int) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if _, rooms, _ := r.streamed(); rooms >= n {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the source does not say %d times how much room there is", n)
		}
	}
}

// TestStreamTrips: writes take no round trip each, nor do those that a file is closed after.
func TestStreamTrips(t *testing.T) {
	r := newRig(t, true)
	f, err := os.Create(filepath.Join(r.mnt, "f"))
	must(t, err)
	r.streams(f, []byte("x"))
	waited := func() (n int) {
		_, err := fmt.Sscanf(r.say("waited", "waited"), "waited %d", &n)
		must(t, err)
		return n
	}
	before := waited()
	rnd := rand.New(rand.NewPCG(1, 1))
	want := make([]byte, 200<<10)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	const pieces = 400
	for i := range pieces { // each byte twice
		b := want[i%200<<10:][:1<<10]
		_, err := f.WriteAt(b, int64(i%200<<10))
		must(t, err)
	}
	must(t, f.Sync())
	has(t, filepath.Join(r.src, "f"), string(want))
	must(t, f.Close())
	if n := waited() - before; n > pieces/10 { // fsync, and how much room there is now and then
		t.Errorf("%d round trips for %d writes", n, pieces)
	}
}

// TestStreamAway: without a connection the tree goes on writing, and what it asks for afterwards waits and is right.
func TestStreamAway(t *testing.T) {
	r := newRigWith(t, true, helperConf{Src: t.TempDir(), Store: t.TempDir(), Plugs: true})
	p := filepath.Join(r.mnt, "log")
	f, err := os.OpenFile(p, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	must(t, err)
	g, err := os.OpenFile(p, os.O_RDWR, 0)
	must(t, err)
	defer g.Close()
	r.streams(g, []byte("0"))
	st, err := g.Stat() // nothing is pending
	must(t, err)
	r.say("unplug", "unplugged")
	want := bytes.Repeat([]byte("0"), int(st.Size()))
	for i := range 100 {
		b := fmt.Appendf(nil, "line %d\n", i)
		want = append(want, b...)
		_, err := f.Write(b)
		must(t, err)
		if i%10 == 5 {
			_, err := g.WriteAt([]byte("over"), int64(len(want)-6))
			must(t, err)
			copy(want[len(want)-6:], "over")
		}
	}
	if _, _, pending := r.streamed(); pending != 1 {
		t.Errorf("%d files have pending writes", pending)
	}
	type seen struct {
		size int64
		b    []byte
		err  error
	}
	looks := make(chan seen, 3)
	go func() {
		st, err := os.Stat(p)
		if err != nil {
			looks <- seen{err: err}
			return
		}
		looks <- seen{size: st.Size(), b: want}
	}()
	go func() {
		must := unix.Fadvise(int(g.Fd()), 0, 0, unix.FADV_DONTNEED)
		b := make([]byte, len(want)+10)
		n, err := unix.Pread(int(g.Fd()), b, 0)
		looks <- seen{size: int64(n), b: b[:max(n, 0)], err: errors.Join(must, err)}
	}()
	go func() { looks <- seen{size: int64(len(want)), b: want, err: f.Close()} }()
	r.say("plug", "plugged")
	for range cap(looks) {
		select {
		case s := <-looks:
			if s.err != nil || s.size != int64(len(want)) || !bytes.Equal(s.b, want) {
				t.Errorf("%d bytes of %d, %q, %v", s.size, len(want), s.b, s.err)
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("what waits for the source does not end")
		}
	}
	has(t, filepath.Join(r.src, "log"), string(want))
}

// TestStreamCalm: before a stop all that was streamed is brought to the source, and what is written meanwhile, and for a while after it, waits for the source.
func TestStreamCalm(t *testing.T) {
	r := newRigWith(t, true, helperConf{Src: t.TempDir(), Store: t.TempDir(), Plugs: true})
	f, err := os.Create(filepath.Join(r.mnt, "f"))
	must(t, err)
	defer f.Close()
	r.streams(f, []byte("0"))
	must(t, f.Sync())
	r.say("unplug", "unplugged")
	for i := range 50 {
		_, err := f.WriteAt([]byte{'a' + byte(i%26)}, int64(i))
		must(t, err)
	}
	before, _, pending := r.streamed()
	if pending != 1 {
		t.Errorf("%d files have pending writes", pending)
	}
	_, err = fmt.Fprintln(r.in, "calm")
	must(t, err)
	kerneltest.Eventually(t, "calm to begin", func() bool { return r.say("calming", "calming") == "calming 1" })
	late := make(chan error, 1)
	go func() {
		_, err := f.WriteAt([]byte("late"), 50)
		late <- err
	}()
	_, err = fmt.Fprintln(r.in, "plug")
	must(t, err)
	for _, s := range []string{r.expect(""), r.expect("")} {
		if s != "plugged" && s != "calm" {
			t.Errorf("helper says %q", s)
		}
	}
	must(t, <-late)
	_, err = f.WriteAt([]byte("later"), 54)
	must(t, err)
	if n, _, pending := r.streamed(); n != before || pending != 0 {
		t.Errorf("%d writes are streamed in a calm, and %d files have pending ones", n-before, pending)
	}
	has(t, filepath.Join(r.src, "f"), "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxlatelater")
}

// TestStreamErrors: the error of a write that the tree went on after is told once by each open file, by fsync or by close, and a later one has nothing to do with it.
func TestStreamErrors(t *testing.T) {
	src := t.TempDir()
	must(t, unix.Mount("tmpfs", src, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, unix.Unmount(src, 0)) })
	r := newRigWith(t, true, helperConf{Src: src, Store: t.TempDir(), Tight: true})
	open := func(n string) *os.File {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(r.mnt, n), os.O_CREATE|os.O_RDWR, 0o644)
		must(t, err)
		return f
	}
	a, b, c := open("f"), open("f"), open("g")
	defer a.Close()
	r.awaitRooms(2)
	must(t, os.WriteFile(filepath.Join(src, "fill"), make([]byte, 1<<19), 0o644))
	if err := os.WriteFile(filepath.Join(src, "fill2"), make([]byte, 1<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill source: %v", err)
	}
	for _, f := range []*os.File{a, c} {
		_, err := f.Write([]byte("does not fit"))
		must(t, err)
	}
	unheard := func(n int) {
		t.Helper()
		if got := r.say("settle", "settled"); got != fmt.Sprint("settled unheard ", n) {
			t.Errorf("%s, want %d", got, n)
		}
	}
	unheard(2)
	wantErr(t, "fsync", a.Sync(), unix.ENOSPC)
	unheard(1)
	must(t, a.Sync())
	late := open("f")
	must(t, late.Sync())
	must(t, late.Close())
	wantErr(t, "close", b.Close(), unix.ENOSPC)
	must(t, a.Sync())
	wantErr(t, "close", c.Close(), unix.ENOSPC)
	unheard(0)
	if _, err := a.WriteAt([]byte("again"), 0); !errors.Is(err, unix.ENOSPC) { // it waits for the source now
		t.Errorf("write after that: %v", err)
	}
	must(t, os.Remove(filepath.Join(src, "fill2")))
	if st, err := a.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("%v, %v", st, err)
	}
	_, err := a.WriteAt([]byte("again"), 0)
	must(t, err)
	must(t, a.Sync())
	has(t, filepath.Join(src, "f"), "again")
	r.say("ask", "asks") // there is room, so the source says
	before, _, _ := r.streamed()
	for range 50 {
		_, err := a.WriteAt([]byte("more"), 0)
		must(t, err)
	}
	if n, _, _ := r.streamed(); n != before {
		t.Errorf("%d writes to a file of which some have failed are streamed", n-before)
	}
}

// TestStreamKilled kills daemons with a window full of writes of which the source has seen none, or some: all are there in the end, once and in their order.
func TestStreamKilled(t *testing.T) {
	r := newApart(t, true)
	f, err := os.Create(filepath.Join(r.mnt, "f"))
	must(t, err)
	log, err := os.OpenFile(filepath.Join(r.mnt, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(t, err)
	defer log.Close()
	rnd := rand.New(rand.NewPCG(2, 2))
	want := make([]byte, 8<<20)
	var lines []byte
	for round := range 3 {
		r.awaitRoom(f, log)
		r.say("mute", "muted")
		for i := range 300 { // of 32 KB at most: they fit
			n := 1 + rnd.IntN(32<<10)
			off := rnd.IntN(len(want) - n)
			for k := range n {
				want[off+k] = byte(rnd.Uint32())
			}
			_, err := f.WriteAt(want[off:off+n], int64(off))
			must(t, err)
			b := fmt.Appendf(nil, "%d %d\n", round, i)
			lines = append(lines, b...)
			_, err = log.Write(b)
			must(t, err)
		}
		r.say("kill", "killed")
		r.say("kill", "killed") // in the middle of sending them again
		must(t, f.Sync())
		must(t, log.Sync())
	}
	for i := range 3 { // the source has done it, and its answer dies with the daemon
		r.awaitRoom(log)
		r.say("park stream", "armed")
		b := fmt.Appendf(nil, "once %d\n", i)
		lines = append(lines, b...)
		_, err = log.Write(b)
		must(t, err)
		r.expect("parked")
		r.say("kill", "killed")
		must(t, log.Sync())
	}
	has(t, filepath.Join(r.src, "log"), string(lines))
	got, err := os.ReadFile(filepath.Join(r.src, "f"))
	must(t, err)
	if !bytes.Equal(got, want[:len(got)]) || len(bytes.Trim(want[len(got):], "\x00")) > 0 {
		t.Errorf("file of %d bytes is different", len(got))
	}
	must(t, f.Close())
}

// awaitRoom opens files anew until their writes are streamed.
func (r *rig) awaitRoom(files ...*os.File) {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); r.say("rooms", "rooms") != fmt.Sprint("rooms ", len(files)); {
		if time.Now().After(deadline) {
			r.t.Fatal("no write is streamed")
		}
		for _, f := range files {
			g, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
			must(r.t, err)
			must(r.t, g.Close())
		}
	}
}
