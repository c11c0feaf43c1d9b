package remotefs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// TestSwap asks for paths below the root while somebody on the source swaps their components with symbolic links that lead outside, as
// fast as he can: what is outside is never read, made, changed or removed.
func TestSwap(t *testing.T) {
	outer := t.TempDir()
	dir, out := filepath.Join(outer, "root"), filepath.Join(outer, "out")
	secret := filepath.Join(out, "f")
	for _, d := range []string{dir, out, filepath.Join(dir, "d")} {
		must(t, os.Mkdir(d, 0o755))
	}
	must(t, os.WriteFile(secret, []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "d", "f"), []byte("inside"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("inside"), 0o644))
	must(t, os.Symlink(out, filepath.Join(dir, "dir-link")))     // swapped with d
	must(t, os.Symlink(secret, filepath.Join(dir, "file-link"))) // swapped with f
	s, c := client(t, dir)
	s.Grant()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	swaps := 0
	wg.Go(func() {
		for {
			for _, p := range [][2]string{{"d", "dir-link"}, {"f", "file-link"}} {
				a, b := filepath.Join(dir, p[0]), filepath.Join(dir, p[1])
				if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
					t.Error(err)
					return
				}
			}
			swaps++
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	read := func(node uint64) {
		h, err := c.Open(ctx, root, node, unix.O_RDONLY)
		if err != nil {
			return
		}
		b := make([]byte, 16)
		if n, err := c.Read(ctx, node, h, 0, b); err == nil && string(b[:n]) == "secret" {
			t.Error("what is outside was read")
		}
		c.Release(node, h)
	}
	inside := 0
	for i := range 500 {
		if f, err := c.Lookup(ctx, root, 1, "f"); err == nil {
			read(f.Node)
			_, _ = c.SetAttr(ctx, root, f.Node, wire.FileSetAttr{Valid: wire.FileSetMode, Mode: 0o666})
			_, _ = c.SetAttr(ctx, root, f.Node, wire.FileSetAttr{Valid: wire.FileSetSize, Size: 3})
			_ = c.SetXattr(ctx, root, f.Node, "trusted.x", []byte("x"), 0, false)
			if h, err := c.Open(ctx, root, f.Node, unix.O_RDWR); err == nil {
				_, _ = c.Write(ctx, root, f.Node, h, 0, 0, []byte("w"))
				c.Release(f.Node, h)
			}
		}
		d, err := c.Lookup(ctx, root, 1, "d")
		if err != nil {
			continue
		}
		name := fmt.Sprint("made-", i)
		if h, ent, err := c.Create(ctx, root, d.Node, name, unix.O_RDWR, 0o644, 0); err == nil {
			inside++
			c.Release(ent.Node, h)
		}
		_, _ = c.Mkdir(ctx, root, d.Node, name+".d", 0o755, 0)
		_, _ = c.Symlink(ctx, root, d.Node, name+".l", "x")
		if f, err := c.Lookup(ctx, root, d.Node, "f"); err == nil {
			read(f.Node)
			_, _ = c.Link(ctx, root, f.Node, d.Node, name+".h")
		}
		_ = c.Rename(ctx, root, d.Node, name, d.Node, name+".r", 0)
		if i%8 == 0 {
			_ = c.Unlink(ctx, root, d.Node, "f")
		}
	}
	close(stop)
	wg.Wait()
	ents, err := os.ReadDir(out)
	if err != nil || len(ents) != 1 || ents[0].Name() != "f" {
		t.Errorf("outside there is %v, %v", ents, err)
	}
	b, err := os.ReadFile(secret)
	if err != nil || string(b) != "secret" {
		t.Errorf("the file outside reads %q, %v", b, err)
	}
	var st unix.Stat_t
	must(t, unix.Lstat(secret, &st))
	if st.Mode != unix.S_IFREG|0o600 || st.Nlink != 1 {
		t.Errorf("the file outside has mode %o, %d links", st.Mode, st.Nlink)
	}
	if n, err := unix.Lgetxattr(secret, "trusted.x", nil); err == nil {
		t.Errorf("the file outside has an attribute of %d bytes", n)
	}
	if swaps < 10 || inside == 0 {
		t.Errorf("%d swaps, %d files made inside: nothing raced", swaps, inside)
	}
}
