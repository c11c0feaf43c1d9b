package lazyfs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// actChurn is a program that does what programs do with files, until its standard input ends, and checks all it sees. It prints a line now and then.
func actChurn(dir string) error {
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	c := &churn{dir: dir, stop: stop}
	works := []func() error{c.appender(0), c.appender(1), c.counter(), c.counter(), c.mapper(), c.lister(), c.ghost()}
	errs := make(chan error, len(works))
	var wg sync.WaitGroup
	for _, w := range works {
		wg.Go(func() {
			for i := 0; ; i++ {
				if err := w(); err != nil {
					errs <- err
					return
				}
				if i%10 == 0 {
					fmt.Println("goes on")
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	if err := <-errs; err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	fmt.Println("right", c.counted)
	return nil
}

type churn struct {
	dir  string
	stop chan struct{}

	rotate   sync.RWMutex
	rotated  int
	appended [2]int

	mu      sync.Mutex
	counted int
}

func (c *churn) path(n string) string { return filepath.Join(c.dir, n) }

// appender writes numbered lines to a log, which it renames and makes anew from time to time.
func (c *churn) appender(who int) func() error {
	return func() error {
		c.rotate.RLock()
		f, err := os.OpenFile(c.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		for i := 0; i < 10 && err == nil; i++ {
			_, err = fmt.Fprintf(f, "%d %d\n", who, c.appended[who])
			c.appended[who]++
		}
		if err == nil && c.appended[who]%50 == 0 {
			err = f.Sync()
		}
		_ = f.Close() // what was written has been told
		c.rotate.RUnlock()
		if err != nil || who != 0 || c.appended[0]%70 != 0 {
			return err
		}
		c.rotate.Lock()
		defer c.rotate.Unlock()
		c.rotated++
		if err := unix.Renameat2(unix.AT_FDCWD, c.path("log"), unix.AT_FDCWD, c.path(fmt.Sprintf("log.%d", c.rotated)), unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("rotate: %w", err)
		}
		f, err = os.OpenFile(c.path("log"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("new log: %w", err)
		}
		return f.Close()
	}
}

// counter adds one to a number in a file, under a lock.
func (c *churn) counter() func() error {
	f, err := os.OpenFile(c.path("count"), os.O_CREATE|os.O_RDWR, 0o644)
	return func() error {
		if err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		b := make([]byte, 20)
		n, _ := f.ReadAt(b, 0) // io.EOF always
		old, _ := strconv.Atoi(string(b[:n]))
		if _, err := f.WriteAt([]byte(strconv.Itoa(old+1)), 0); err != nil {
			return fmt.Errorf("count: %w", err)
		}
		c.mu.Lock()
		c.counted++
		c.mu.Unlock()
		return unix.Flock(int(f.Fd()), unix.LOCK_UN)
	}
}

// mapper changes a mapped file and reads it back.
func (c *churn) mapper() func() error {
	n := byte(0)
	return func() error {
		n++
		f, err := os.OpenFile(c.path("mapped"), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Truncate(64 << 10); err != nil {
			return fmt.Errorf("truncate: %w", err)
		}
		m, err := unix.Mmap(int(f.Fd()), 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("mmap: %w", err)
		}
		for i := range m {
			m[i] = n
		}
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
		if err := unix.Munmap(m); err != nil {
			return err
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // a hint
		b, err := os.ReadFile(c.path("mapped"))
		if err != nil || !bytes.Equal(b, bytes.Repeat([]byte{n}, 64<<10)) {
			return fmt.Errorf("mapped file of %d bytes is not %d: %w", len(b), n, err)
		}
		return nil
	}
}

const bigFolder = 1500

// lister lists a large directory, which does not change.
func (c *churn) lister() func() error {
	return func() error {
		ents, err := os.ReadDir(c.path("big"))
		if err != nil || len(ents) != bigFolder {
			return fmt.Errorf("%d names: %w", len(ents), err)
		}
		for i, e := range ents { // sorted, so each is there once
			if want := fmt.Sprintf("f%05d", i); e.Name() != want {
				return fmt.Errorf("name %s instead of %s", e.Name(), want)
			}
			if i%100 == 0 {
				if _, err := e.Info(); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// ghost uses a file that has no name any more.
func (c *churn) ghost() func() error {
	return func() error {
		f, err := os.OpenFile(c.path("ghost"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return fmt.Errorf("make file to unlink: %w", err)
		}
		defer f.Close()
		if err := unix.Unlink(c.path("ghost")); err != nil {
			return fmt.Errorf("unlink: %w", err)
		}
		var want []byte
		for i := range 5 {
			line := fmt.Appendf(nil, "line %d\n", i)
			want = append(want, line...)
			if _, err := f.Write(line); err != nil {
				return fmt.Errorf("write without name: %w", err)
			}
		}
		b := make([]byte, 100)
		n, _ := f.ReadAt(b, 0) // io.EOF always
		st, err := f.Stat()
		if err != nil || !bytes.Equal(b[:n], want) || st.Size() != int64(len(want)) {
			return fmt.Errorf("unlinked file has %q, %w", b[:n], err)
		}
		return nil
	}
}

// check compares the end with what has been done.
func (c *churn) check() error {
	seen := map[string]int{}
	for i := range c.rotated + 1 {
		name := "log"
		if i > 0 {
			name = fmt.Sprintf("log.%d", i)
		}
		b, err := os.ReadFile(c.path(name))
		if err != nil {
			return err
		}
		for l := range strings.Lines(string(b)) {
			seen[l]++
		}
	}
	for who, n := range c.appended {
		for i := range n {
			if l := fmt.Sprintf("%d %d\n", who, i); seen[l] != 1 {
				return fmt.Errorf("line %q is there %d times", l, seen[l])
			}
		}
	}
	if len(seen) != c.appended[0]+c.appended[1] {
		return fmt.Errorf("%d lines of %v", len(seen), c.appended)
	}
	b, err := os.ReadFile(c.path("count"))
	if err != nil || string(b) != strconv.Itoa(c.counted) {
		return fmt.Errorf("count is %q after %d: %w", b, c.counted, err)
	}
	return nil
}

// TestDaemonKilled kills the daemon 50 times below a program that checks all that it sees.
func TestDaemonKilled(t *testing.T) {
	r := newApart(t, true)
	must(t, os.Mkdir(filepath.Join(r.src, "big"), 0o755))
	for i := range bigFolder {
		write(t, filepath.Join(r.src, "big", fmt.Sprintf("f%05d", i)), "")
	}
	p := startAct(t, "churn", r.mnt)
	for range 50 {
		p.line(t)
		r.say("kill", "killed")
	}
	p.stop()
	for last := ""; ; {
		l, ok := <-p.lines
		if !ok {
			t.Fatalf("program ended with %q", last)
		}
		if last = l; strings.HasPrefix(l, "right") {
			break
		}
	}
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
	// The source has what the program saw.
	if a, b := names(t, r.src), names(t, r.mnt); a != b {
		t.Errorf("source has %s, mount %s", a, b)
	}
}
