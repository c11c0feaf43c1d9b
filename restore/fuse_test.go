package restore

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/wire"
)

// A FUSE daemon that has taken a request and never answers does not keep a capsule alive.
func TestFuseStuck(t *testing.T) {
	kerneltest.Leaks(t)
	kerneltest.Need(t, kerneltest.Root, kerneltest.FUSE)
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fuse.Close()
	ctx, cancel := context.WithTimeout(t.Context(), kerneltest.Patience)
	defer cancel()
	stuck := make(chan error, 1)
	go func() {
		stuck <- takeOne(fuse)
		cancel()
	}()
	began := time.Now()
	_, err = Start(ctx, Options{ID: wire.NewID(), ImagesDir: imagesDir(t), Fuse: fuse, Log: testLog(t)})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("started with a root that does not answer: %v after %v", err, time.Since(began))
	}
	if err := <-stuck; err != nil {
		t.Error(err)
	}
}

// takeOne answers FUSE_INIT and takes the next request.
func takeOne(fuse *os.File) error {
	buf := make([]byte, 64<<10)
	n, err := readFuse(fuse, buf)
	if err != nil {
		return err
	}
	if op := binary.NativeEndian.Uint32(buf[4:]); n < 40 || op != 26 { // FUSE_INIT
		return errors.New("the first request is not INIT")
	}
	out := make([]byte, 16+64)
	binary.NativeEndian.PutUint32(out, uint32(len(out)))
	copy(out[8:16], buf[8:16])
	for off, v := range map[int]uint32{16: 7, 20: 31, 36: 4096} { // major, minor, max_write
		binary.NativeEndian.PutUint32(out[off:], v)
	}
	if _, err := fuse.Write(out); err != nil {
		return err
	}
	_, err = readFuse(fuse, buf)
	return err
}

// readFuse waits for the mount, too.
func readFuse(fuse *os.File, buf []byte) (int, error) {
	for end := time.Now().Add(kerneltest.Patience); ; {
		n, err := unix.Read(int(fuse.Fd()), buf)
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EINTR) || time.Now().After(end) {
			return n, err
		}
		_, _ = unix.Poll(nil, 1) // not mounted yet: the kernel has no event for it
	}
}
