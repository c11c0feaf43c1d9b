package preflight

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWriters: of three files one is open for writing in another process, one for reading, and one for writing in this one only.
func TestWriters(t *testing.T) {
	dir := t.TempDir()
	var ids []Inode
	for _, name := range []string{"written", "read", "own"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, Inode{st.Dev, st.Ino})
	}
	cmd := exec.Command("sh", "-c", "exec 3>>written 4<read; echo ready; read x")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Wait() // sh says that there is no more to read
	}()
	if s, err := bufio.NewReader(out).ReadString('\n'); s != "ready\n" {
		t.Fatalf("sh says %q, %v", s, err)
	}
	found, err := Writers(ids, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || !strings.Contains(found[ids[0]], "open for writing by process") || !strings.Contains(found[ids[0]], "sh") {
		t.Errorf("found %v", found)
	}
	if found, err = Writers(ids, func(pid int) bool { return pid == cmd.Process.Pid }); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v beside the one that does not count", found, err)
	}
}
