package remotefs

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// heard is a log that may be read while it is written.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(p)
}

func (h *heard) has(s string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Contains(h.b.String(), s)
}

// TestNoDescriptor leaves the server without one: who opens, looks up or makes a file waits, and is told nothing.
func TestNoDescriptor(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	s, c := client(t, dir)
	s.Grant()
	log := &heard{}
	s.log = slog.New(slog.NewTextHandler(log, nil))
	f, err := c.Lookup(ctx, root, 1, "file")
	must(t, err)
	var old unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}))
	restore := func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }
	defer restore()
	done := make(chan error, 3)
	go func() { _, err := c.Lookup(ctx, root, 1, "file"); done <- err }()
	go func() { _, err := c.Open(ctx, root, f.Node, unix.O_RDONLY); done <- err }()
	go func() { _, _, err := c.Create(ctx, root, 1, "new", unix.O_RDWR|unix.O_EXCL, 0o600, 0); done <- err }()
	kerneltest.Eventually(t, "server to be short", func() bool { return len(s.short) == 3 && log.has("no descriptor is left") })
	restore()
	for range 3 {
		if err := <-done; err != nil {
			t.Errorf("told: %v", err)
		}
	}
}
