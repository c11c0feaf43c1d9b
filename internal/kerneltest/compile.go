package kerneltest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var compiled struct {
	mu    sync.Mutex
	dir   string            // programs live here; made on first use
	paths map[string]string // hash of source and flags → program
}

// CompileC compiles a C program (gcc -O2, then flags) and returns its path. The
// same source is compiled once per test binary; the path is readable for
// every uid and stays until [RemoveCompiled] or the end of the machine's /tmp.
func CompileC(t testing.TB, src string, flags ...string) string {
	t.Helper()
	Need(t, GCC)
	key := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%q %s", flags, src)))[:16]

	compiled.mu.Lock()
	defer compiled.mu.Unlock()
	if p, ok := compiled.paths[key]; ok {
		return p
	}
	if compiled.dir == "" {
		// One directory per user and boot, reused by the next run; a program is
		// renamed into place, so two test binaries at once do no harm.
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("lazymig-cc-%d", os.Getuid()))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		compiled.dir, compiled.paths = dir, map[string]string{}
	}
	out := filepath.Join(compiled.dir, "p"+key)
	if _, err := os.Stat(out); err != nil {
		build(t, src, out, flags)
	}
	compiled.paths[key] = out
	return out
}

func build(t testing.TB, src, out string, flags []string) {
	t.Helper()
	tmp, err := os.MkdirTemp(filepath.Dir(out), "build-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	c := filepath.Join(tmp, "main.c")
	if err := os.WriteFile(c, []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(tmp, "main")
	args := append([]string{"-O2", "-g", "-Wall", "-pthread", "-o", bin, c}, flags...)
	if msg, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, msg)
	}
	if err := os.Chmod(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(bin, out); err != nil {
		t.Fatal(err)
	}
}
