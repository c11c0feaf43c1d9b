package fsmodel

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// dataCases are about contents that come by other ways than write.
var dataCases = []testCase{
	{"mapped", func(c *users) {
		c.alice.Make("m", strings.Repeat("a", 3*4096), 0o644)
	}, func(c *users) {
		fd, add := c.alice.Open("m", unix.O_RDWR, 0), c.alice.Open("m", unix.O_WRONLY|unix.O_APPEND, 0)
		c.alice.run(func() (string, error) { return mapped(fd) }, "map")
		c.alice.Write(add, "end") // what was written to the mapping has its place, it is not appended
		c.alice.Fstat(fd)
		for _, off := range []int64{0, 4096, 8192, 3 * 4096} {
			c.bob.Pread(c.bob.Open("m", unix.O_RDONLY, 0), 8, off)
		}
		ro := c.alice.Open("m", unix.O_RDONLY, 0)
		c.alice.call(func() error {
			_, err := unix.Mmap(ro, 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED)
			return err
		}, "map for writing what is open for reading")
	}},
	{"copied", func(c *users) {
		c.alice.Make("from", strings.Repeat("copy", 5000), 0o644)
	}, func(c *users) {
		from, to := c.alice.Open("from", unix.O_RDONLY, 0), c.alice.Open("to", unix.O_CREAT|unix.O_RDWR, 0o644)
		for range 2 {
			c.alice.run(func() (string, error) {
				done := 0
				for {
					n, err := unix.CopyFileRange(from, nil, to, nil, 30000, 0)
					if done += n; n <= 0 || err != nil {
						return fmt.Sprint(done), err
					}
				}
			}, "copy")
			c.alice.Seek(from, 0, unix.SEEK_SET)
		}
		c.alice.call(func() error { _, err := unix.CopyFileRange(to, nil, from, nil, 10, 0); return err }, "copy to what is open for reading")
		c.alice.Fstat(to)
		c.alice.Pread(to, 40, 19990)
	}},
	{"appended", func(c *users) {
		c.alice.Make("log", "begun\n", 0o666)
	}, func(c *users) {
		fds := []int{c.alice.Open("log", unix.O_WRONLY|unix.O_APPEND, 0), c.bob.Open("log", unix.O_RDWR|unix.O_APPEND, 0)}
		for i := range 20 {
			c.root.Write(fds[i%2], fmt.Sprintf("line %d of %d\n", i, i%2))
			c.bob.Pread(fds[1], 400, 0)
			if i == 10 {
				c.alice.Ftruncate(fds[0], 3)
			}
		}
		c.alice.Fstat(fds[0])
		c.root.Close(fds[0])
	}},
	{"holes", func(c *users) {
		c.alice.Make("f", "", 0o644)
		fd := c.alice.Open("f", unix.O_WRONLY, 0)
		c.alice.Seek(fd, 1<<20, unix.SEEK_SET)
		c.alice.Write(fd, strings.Repeat("x", 64<<10))
		c.alice.Ftruncate(fd, 3<<20)
	}, func(c *users) {
		fd := c.alice.Open("f", unix.O_RDWR, 0)
		for range 2 {
			for _, off := range []int64{0, 1 << 20, 1<<20 + 40<<10, 2 << 20, 3 << 20} {
				c.alice.Seek(fd, off, unix.SEEK_DATA)
				c.alice.Seek(fd, off, unix.SEEK_HOLE)
			}
			c.alice.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1<<20, 32<<10)
			c.alice.Pread(fd, 10, 1<<20+32<<10-5)
		}
	}},
}

// mapped writes to a file of three pages by a mapping that is shared, and looks at it by one that is not.
func mapped(fd int) (string, error) {
	shared, err := unix.Mmap(fd, 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(shared) }()
	private, err := unix.Mmap(fd, 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(private) }()
	before := bytes.Count(shared, []byte("a"))
	private[5] = 'p'
	copy(shared[4096:], "shared")
	copy(shared[8192:], "late")
	return fmt.Sprintf("%d %.8s %.8s", before, private, private[4096:]), unix.Msync(shared, unix.MS_SYNC)
}
