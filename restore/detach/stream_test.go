package detach

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestSwitchStream gives a tree a file in the place of the pipe that it writes to: all of its processes have that, and nobody the pipe.
func TestSwitchStream(t *testing.T) {
	kerneltest.Leaks(t)
	tr := startTree(t)
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", tr.pid))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(path, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	o := tr.options()
	o.Streams = []Stream{{"pipe:[1]", f}, {link, f}}
	_, err = Switch(t.Context(), o)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.out.ReadByte(); err != io.EOF {
		t.Errorf("the pipe has not ended: %v", err)
	}
	for i, want := range []string{"before\nOK\n", "before\nOK\nOK\n"} {
		if _, err := io.WriteString(tr.in, "check\n"); err != nil {
			t.Fatal(err)
		}
		kerneltest.Eventually(t, fmt.Sprintf("answer %d", i+1), func() bool {
			b, err := os.ReadFile(path)
			return err == nil && string(b) == want
		})
	}
}
