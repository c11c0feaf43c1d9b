package restore

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRoom takes the tightest limit from the cgroup upwards; a level without the controller has none.
func TestRoom(t *testing.T) {
	top := t.TempDir()
	write := func(dir string, files map[string]string) {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(top, dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("a", map[string]string{"cgroup.controllers": "", "memory.max": "1000000\n", "memory.current": "999000\n"})
	write("a/b", map[string]string{"cgroup.controllers": ""})
	write("a/b/tree", map[string]string{"cgroup.controllers": "memory\n", "memory.max": "max\n", "memory.current": "5000\n"})
	group, err := os.Open(filepath.Join(top, "a/b/tree"))
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	if n := room(group); n != 1000 {
		t.Errorf("the parent's parent leaves 1000 bytes, room is %d", n)
	}
	write("a/b/tree", map[string]string{"memory.max": "4000\n"})
	if n := room(group); n != 0 {
		t.Errorf("the limit has been passed, room is %d", n)
	}
	write("a", map[string]string{"memory.max": "max\n"})
	write("a/b/tree", map[string]string{"memory.max": "max\n"})
	if n := room(group); n == 0 || n > 1<<60 {
		t.Errorf("nothing limits it but the host, room is %d", n)
	}
}
