package fsmodel

import "golang.org/x/sys/unix"

// openCases are about open, sizes and contents.
var openCases = []testCase{
	{"openflags", func(c *users) {
		kinds(c.root, "k")
		c.alice.Make("full", "0123456789", 0o644)
		c.alice.Make("readable", "0123456789", 0o444)
		c.root.Make("writable", "0123456789", 0o222)
	}, func(c *users) {
		for _, n := range append(kindNames, "new") {
			if n == "char" || n == "block" { // there may be no such device
				continue
			}
			p := "k/" + n
			for _, flags := range []int{
				unix.O_RDONLY, unix.O_WRONLY, unix.O_RDONLY | unix.O_DIRECTORY, unix.O_RDWR | unix.O_DIRECTORY, unix.O_RDONLY | unix.O_NOFOLLOW, unix.O_PATH, unix.O_PATH | unix.O_NOFOLLOW,
				unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL, unix.O_RDONLY | unix.O_CREAT | unix.O_DIRECTORY, unix.O_RDONLY | unix.O_CREAT, unix.O_RDONLY | unix.O_TRUNC, unix.O_RDONLY | unix.O_NOATIME, 3,
			} {
				fd := c.root.Open(p, flags|unix.O_NONBLOCK, 0o640)
				c.root.Fstat(fd)
				c.root.Flags(fd)
				c.bob.Open(p, flags|unix.O_NONBLOCK, 0o640)
			}
			c.root.Stat(p)
		}
		c.root.Stat("k/nothing") // made through the link that led nowhere
		fd := c.alice.Open("full", unix.O_WRONLY|unix.O_APPEND, 0)
		c.alice.Seek(fd, 0, unix.SEEK_SET)
		c.alice.Write(fd, "ab")
		c.alice.Seek(fd, 0, unix.SEEK_CUR)
		c.alice.Pread(fd, 3, 0)
		c.alice.Pread(c.alice.Open("full", unix.O_RDONLY, 0), 20, 0)
		c.alice.Pread(c.alice.Open("full", unix.O_RDONLY, 0), 20, -1)
		c.alice.Write(c.alice.Open("full", unix.O_RDONLY, 0), "x")
		c.alice.Utimens("full", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0)
		c.alice.Open("full", unix.O_RDONLY|unix.O_TRUNC, 0) // undefined by POSIX, and truncates
		c.alice.Stat("full")
		for _, u := range c.all() {
			for _, p := range []string{"readable", "writable"} {
				for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_TRUNC, unix.O_RDONLY | unix.O_NOATIME} {
					u.Open(p, flags, 0)
				}
			}
		}
		// who makes a file may write it, whatever its mode says to others
		fd = c.alice.Open("locked", unix.O_CREAT|unix.O_RDWR, 0)
		c.alice.Write(fd, "mine")
		c.alice.Pread(fd, 10, 0)
		c.alice.Open("locked", unix.O_RDWR, 0)
	}},
	{"fifos", func(c *users) {
		c.alice.Mkfifo("fifo", 0o640)
	}, func(c *users) {
		c.alice.Open("fifo", unix.O_WRONLY|unix.O_NONBLOCK, 0) // nobody reads
		c.bob.Open("fifo", unix.O_RDONLY|unix.O_NONBLOCK, 0)
		r := c.alice.Open("fifo", unix.O_RDONLY|unix.O_NONBLOCK, 0)
		w := c.alice.Open("fifo", unix.O_WRONLY|unix.O_NONBLOCK, 0)
		c.alice.Write(w, "through")
		c.alice.run(func() (string, error) {
			b := make([]byte, 10)
			n, err := unix.Read(r, b)
			return string(b[:max(n, 0)]), err
		}, "read")
		c.alice.Seek(r, 0, unix.SEEK_SET)
		c.alice.Ftruncate(w, 0)
		c.alice.Truncate("fifo", 0)
		c.alice.Stat("fifo")
	}},
	{"truncate", func(c *users) {
		kinds(c.root, "k")
		c.alice.Make("mine", "0123456789", 0o644)
		c.alice.Make("readable", "0123456789", 0o444)
	}, func(c *users) {
		for _, n := range append(kindNames, "nothing") {
			if n == "fifo" || n == "char" || n == "block" {
				continue
			}
			c.root.Truncate("k/"+n, 4)
			c.root.Truncate("k/"+n, -1)
			c.alice.Truncate("k/"+n, 4)
			c.root.Stat("k/" + n)
		}
		c.alice.Utimens("mine", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0)
		c.alice.Truncate("mine", 10) // as long as before: the time changes all the same
		c.alice.Stat("mine")
		c.alice.Truncate("mine", 20000)
		c.alice.Pread(c.alice.Open("mine", unix.O_RDONLY, 0), 20, 5)
		c.alice.Truncate("mine", 5)
		c.alice.Truncate("mine", 12)
		c.alice.Pread(c.alice.Open("mine", unix.O_RDONLY, 0), 20, 0)
		c.bob.Truncate("mine", 1)
		c.alice.Truncate("readable", 1)
		c.root.Truncate("readable", 2)
		c.alice.Ftruncate(c.alice.Open("mine", unix.O_RDONLY, 0), 1)
		fd := c.alice.Open("mine", unix.O_RDWR, 0)
		c.alice.Chmod("mine", 0)
		c.alice.Ftruncate(fd, 3) // what is open for writing stays so
		c.alice.Ftruncate(fd, -1)
		c.alice.Ftruncate(fd, 1<<62)
		c.alice.Fstat(fd)
	}},
	{"fallocate", func(c *users) {
		c.alice.Make("f", "0123456789", 0o644)
		c.alice.Mkdir("dir", 0o755)
		c.alice.Mkfifo("fifo", 0o644)
	}, func(c *users) {
		fd := c.alice.Open("f", unix.O_RDWR, 0)
		for _, mode := range []uint32{
			0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, 1 << 20,
		} {
			for _, r := range [][2]int64{{0, 4}, {4, 20000}, {0, 0}, {-1, 5}, {5, -1}, {1 << 62, 1 << 62}} {
				c.alice.Fallocate(fd, mode, r[0], r[1])
			}
			c.alice.Fstat(fd)
			c.alice.Pread(fd, 20, 0)
		}
		c.alice.Fallocate(c.alice.Open("f", unix.O_RDONLY, 0), 0, 0, 10)
		c.alice.Fallocate(c.alice.Open("fifo", unix.O_RDWR, 0), 0, 0, 10)
		c.alice.Fallocate(c.alice.Open("dir", unix.O_RDONLY, 0), 0, 0, 10)
		c.alice.Fallocate(-1, 0, 0, 10)
		c.alice.Seek(fd, 1<<30, unix.SEEK_DATA)
		c.alice.Seek(fd, -1, unix.SEEK_SET)
		c.alice.Seek(fd, 0, 77)
	}},
}

var (
	past    = unix.Timespec{Sec: 1234567, Nsec: 123456789}
	past2   = unix.Timespec{Sec: 7654321, Nsec: 987654321}
	timeNow = unix.Timespec{Nsec: unix.UTIME_NOW}
	omitted = unix.Timespec{Nsec: unix.UTIME_OMIT}
)

// timeCases are about utimensat.
var timeCases = []testCase{
	{"utimens", func(c *users) {
		kinds(c.root, "k")
		c.alice.Make("mine", "x", 0o644)
		c.alice.Make("everyones", "x", 0o666)
	}, func(c *users) {
		for _, n := range kindNames {
			p := "k/" + n
			c.root.Utimens(p, past, past2, unix.AT_SYMLINK_NOFOLLOW)
			c.root.Atime(p)
			c.root.Stat(p)
			c.root.Utimens(p, past2, past, 0) // through a link
			c.root.Atime(p)
			c.root.Stat(p)
			c.alice.Utimens(p, past, past, 0)
		}
		for _, p := range []string{"mine", "everyones"} {
			for _, u := range c.all() {
				for _, times := range [][2]unix.Timespec{
					{past, past2}, {omitted, past}, {past, omitted}, {omitted, omitted}, {timeNow, timeNow}, {omitted, timeNow}, {timeNow, omitted}, {timeNow, past}, {{Nsec: 1e9}, past}, {past, {Sec: 5, Nsec: -1}},
				} {
					c.root.Utimens(p, unix.Timespec{Sec: 1}, unix.Timespec{Sec: 2}, 0)
					u.Utimens(p, times[0], times[1], 0)
					c.root.Atime(p)
					c.root.Stat(p)
				}
				u.Touch(p)
				u.Stat(p)
			}
		}
		c.alice.Utimens("mine", unix.Timespec{Sec: -5, Nsec: 7}, unix.Timespec{Sec: -6, Nsec: 8}, 0)
		c.alice.Atime("mine")
		c.alice.Stat("mine")
		c.alice.Chmod("mine", 0)
		c.alice.Touch("mine") // the owner may
		c.root.Utimens("nothing", past, past, 0)
	}},
	{"changes", func(c *users) {
		c.root.Mkdir("d", 0o755)
		c.root.Make("d/f", "0123456789", 0o644)
		c.root.Mkdir("d/sub", 0o755)
	}, func(c *users) {
		// what changes a directory's or a file's time, and what does not
		for _, f := range []func(){
			func() { c.root.Make("d/new", "", 0o644) }, func() { c.root.Mkdir("d/newdir", 0o755) }, func() { c.root.Symlink("x", "d/newlink") }, func() { c.root.Mkfifo("d/newfifo", 0o644) },
			func() { c.root.Link("d/f", "d/hard") }, func() { c.root.Rename("d/hard", "d/hard2", 0) }, func() { c.root.Rename("d/new", "d/sub/new", 0) }, func() { c.root.Unlink("d/hard2") },
			func() { c.root.Rmdir("d/newdir") }, func() { c.root.Unlink("d/nothing") }, func() { c.root.Chmod("d/f", 0o600) }, func() { c.root.Chmod("d", 0o711) },
			func() { c.root.Write(c.root.Open("d/f", unix.O_WRONLY, 0), "x") }, func() { c.root.Write(c.root.Open("d/f", unix.O_WRONLY, 0), "") },
			func() { c.root.Pread(c.root.Open("d/f", unix.O_RDONLY, 0), 4, 0) }, func() { c.root.Open("d/f", unix.O_CREAT|unix.O_RDWR, 0o644) },
			func() { c.root.Open("d/f", unix.O_WRONLY|unix.O_TRUNC, 0) }, func() { c.root.Truncate("d/f", 3) }, func() { c.root.Setxattr("d/f", "user.x", nil, 0) }, func() { c.root.Chown("d/f", 1, 1) },
			func() { c.root.Fallocate(c.root.Open("d/f", unix.O_RDWR, 0), 0, 0, 20) },
		} {
			for _, p := range []string{"d", "d/f", "d/sub"} {
				c.root.Utimens(p, past, past, 0)
			}
			f()
			for _, p := range []string{"d", "d/f", "d/sub"} {
				c.root.Stat(p)
			}
		}
	}},
}
