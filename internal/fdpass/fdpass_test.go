package fdpass

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (*Socket, *Socket) {
	t.Helper()
	return pairOf(t, New)
}

func pairOf(t *testing.T, take func(*os.File) (*Socket, error)) (*Socket, *Socket) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	b, err := take(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// Both ways of waiting get messages whole and with their descriptors, and end at Close.
func TestRecv(t *testing.T) {
	for _, take := range []func(*os.File) (*Socket, error){New, NewInThread} {
		a, b := pairOf(t, take)
		type result struct {
			text  string
			files int
			err   error
		}
		got := make(chan result, 1)
		go func() {
			for {
				buf := make([]byte, 100)
				n, files, err := b.Recv(buf)
				CloseAll(files)
				got <- result{string(buf[:n]), len(files), err}
				if err != nil {
					return
				}
			}
		}()
		next := func() result {
			select {
			case r := <-got:
				return r
			case <-time.After(time.Minute):
				t.Fatal("Recv does not return")
				return result{}
			}
		}
		if err := a.Send([]byte("one"), a.f); err != nil {
			t.Fatal(err)
		}
		if r := next(); r.text != "one" || r.files != 1 || r.err != nil {
			t.Errorf("got %+v", r)
		}
		b.Close()
		if r := next(); r.err == nil {
			t.Errorf("after Close: %+v", r)
		}
	}
}

func TestTryRecv(t *testing.T) {
	a, b := pair(t)
	buf := make([]byte, 100)
	if _, _, err := b.TryRecv(buf); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing there: %v", err)
	}
	if err := a.Send([]byte("two"), a.f); err != nil {
		t.Fatal(err)
	}
	n, files, err := b.TryRecv(buf)
	if err != nil || string(buf[:n]) != "two" || len(files) != 1 {
		t.Errorf("got %q, %d files, %v", buf[:max(n, 0)], len(files), err)
	}
	CloseAll(files)
	a.Shutdown()
	if _, _, err := b.TryRecv(buf); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	if b.FD() < 0 {
		t.Error("no descriptor")
	}
}

// TestRecvShort: a descriptor that comes while this process may have no more is not lost.
func TestRecvShort(t *testing.T) {
	a, b := pair(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Fatal(err)
		}
	}
	defer restore()
	for _, m := range []string{"first", "second"} {
		if err := a.Send([]byte(m), a.f, a.f); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Send([]byte("third")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for i, want := range []string{"first", "second", "third"} {
		if i == 0 {
			go func() {
				for b.short.Load() == 0 {
					runtime.Gosched()
				}
				restore()
			}()
		}
		n, files, err := b.Recv(buf)
		if err != nil || string(buf[:n]) != want || len(files) != 2 && want != "third" {
			t.Errorf("got %q with %d descriptors, %v", buf[:n], len(files), err)
		}
		CloseAll(files)
	}
}
