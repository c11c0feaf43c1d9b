package fdpass

import (
	"errors"
	"os"
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
