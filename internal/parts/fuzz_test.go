package parts

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// FuzzServe: who asks may be in another's hands. Whatever he says, nothing is started, and the server answers or ends.
func FuzzServe(f *testing.F) {
	dir := f.TempDir()
	for _, b := range []startBody{{Name: Handler}, {Name: Carrier, Dir: dir + "/x"}, {Name: Switch, Cgroup: true}} {
		m, err := fdpass.Pack(b)
		if err != nil {
			f.Fatal(err)
		}
		body := make([]byte, 4096)
		n, err := m.ReadAt(body, 0)
		m.Close()
		if n == 0 {
			f.Fatal(err)
		}
		f.Add([]byte(`{"seq":1,"op":"start","body":true}`), body[:n], true)
	}
	f.Add([]byte(`{"seq":1,"op":"look"}`), []byte{}, false)
	f.Add([]byte("{"), []byte{1}, true)
	null, err := os.Open(os.DevNull)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, message, body []byte, more bool) {
		if len(message) == 0 || len(message) > fdpass.MaxMessage {
			return
		}
		sock, peer, err := fdpass.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer sock.Close()
		other, err := fdpass.New(peer)
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.MemfdCreate("body", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		m := os.NewFile(uintptr(fd), "body")
		defer m.Close()
		if _, err := m.Write(body); err != nil {
			t.Fatal(err)
		}
		files := []*os.File{m}
		if more { // not two more, which a handler takes
			files = append(files, null)
		}
		if err := sock.Send(message, files...); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		s := &Server{Dir: dir, Failed: func(string, error) {}, Ops: map[string]Op{"look": func(in func(any) error, _ []*os.File) (any, *os.File, error) {
			var all []string
			return all, nil, in(&all)
		}}}
		go func() {
			defer close(done)
			defer other.Close()
			_ = s.Serve(other) // how it ends does not matter
		}()
		buf := make([]byte, fdpass.MaxMessage)
		_, got, err := sock.Recv(buf)
		if err == nil && len(got) > 1 {
			t.Errorf("%d descriptors", len(got))
		}
		fdpass.CloseAll(got)
		sock.Close()
		<-done
	})
}
