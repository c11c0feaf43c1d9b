package fsmodel

import (
	"strings"

	"golang.org/x/sys/unix"
)

// each does one of each operation on a path; what it names is what the case is about.
func each(u *User, p string) {
	u.Open(p, unix.O_RDONLY, 0)
	u.Open(p, unix.O_RDWR|unix.O_CREAT, 0o644)
	u.Stat(p)
	u.Access(p, unix.R_OK)
	u.Chmod(p, 0o600)
	u.Chown(p, 1001, 1001)
	u.Lchown(p, 1001, 1001)
	u.Truncate(p, 5)
	u.Mkdir(p, 0o755)
	u.Mkfifo(p, 0o644)
	u.Mknod(p, unix.S_IFSOCK|0o644, 0)
	u.Symlink("x", p)
	u.Link(p, "each.link")
	u.Link("there", p)
	u.Rename(p, "each.renamed", 0)
	u.Rename("there2", p, 0)
	u.Rename("there.dir", p, 0)
	u.Utimens(p, unix.Timespec{Sec: 5}, unix.Timespec{Sec: 6}, 0)
	u.Touch(p)
	u.Setxattr(p, "user.x", []byte("v"), 0)
	u.Getxattr(p, "user.x", 10)
	u.Names(p)
	u.Rmdir(p)
	u.Unlink(p)
	u.Unlink("each.link")
}

func eachNeeds(u *User) {
	u.Make("there", "x", 0o644)
	u.Make("there2", "x", 0o644)
	u.Mkdir("there.dir", 0o755)
}

// nameCases are about paths.
var nameCases = []testCase{
	{"toolong", func(c *users) {
		eachNeeds(c.root)
	}, func(c *users) {
		for _, n := range []int{254, 255, 256, 300} {
			each(c.root, strings.Repeat("n", n))
		}
		each(c.root, strings.Repeat("n", 256)+"/below")
		for _, n := range []int{4094, 4095, 4096, 4200} { // with the zero at its end a path has 4096
			each(c.root, strings.Repeat("./", n/2)[:n-1]+"x")
		}
		c.root.Symlink(strings.Repeat("l", 4095), "longlink")
		c.root.Symlink(strings.Repeat("l", 4096), "longerlink")
		c.root.Symlink("", "emptylink")
		c.root.Stat("longlink")
	}},
	{"loop", func(c *users) {
		eachNeeds(c.root)
		c.root.Symlink("loop", "loop")
		c.root.Symlink("two", "one")
		c.root.Symlink("one", "two")
		c.root.Symlink("there", "good")
	}, func(c *users) {
		each(c.root, "loop/below")
		each(c.root, "one/below")
		c.root.Open("loop", unix.O_RDONLY, 0)
		c.root.Open("loop", unix.O_CREAT|unix.O_RDWR, 0o644)
		c.root.Open("loop", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o644)
		c.root.Open("good", unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		c.root.Open("good", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		c.root.Chmod("one", 0o600)
		c.root.Truncate("two", 0)
		c.root.Access("one", 0)
		c.root.Chown("one", 1, 1)
		c.root.LinkFollow("one", "hard")
		c.root.LinkFollow("good", "hard")
		c.root.Link("good", "hardlink")
		c.root.Stat("hard")
		c.root.Stat("hardlink")
	}},
	{"notdir", func(c *users) {
		eachNeeds(c.root)
		c.root.Make("file", "x", 0o644)
		c.root.Mkfifo("fifo", 0o644)
	}, func(c *users) {
		each(c.root, "file/below")
		each(c.root, "fifo/below")
		each(c.root, "nothing/below")
		each(c.root, "file/")
		each(c.root, "nothing/")
		each(c.root, "")
	}},
	{"permission", func(c *users) {
		c.root.Mkdir("closed", 0o755)
		c.root.Make("closed/file", "x", 0o666)
		c.root.Mkdir("closed/dir", 0o777)
		c.root.Mkdir("readonly", 0o755)
		c.root.Make("readonly/file", "x", 0o666)
		c.root.Mkdir("readonly/dir", 0o777)
		c.root.Chmod("closed", 0o600)
		eachNeeds(c.alice)
	}, func(c *users) {
		for _, d := range []string{"closed", "readonly"} {
			for _, n := range []string{"file", "dir", "new"} {
				each(c.alice, d+"/"+n)
			}
		}
	}},
	{"link", func(c *users) {
		kinds(c.alice, "k")
		kinds(c.root, "r")
	}, func(c *users) {
		for _, n := range kindNames {
			c.alice.Link("k/"+n, "hard."+n)
			c.alice.Stat("hard." + n)
			c.alice.Link("k/file", "hard."+n) // there already
			c.alice.Link("k/"+n, "k/dir/"+n)
			c.root.Link("r/"+n, "rhard."+n)
			c.bob.Link("k/"+n, "bobs."+n) // protected_hardlinks
			c.alice.Unlink("k/" + n)
			c.alice.Stat("hard." + n)
			c.alice.Unlink("hard." + n)
			c.alice.Stat("k/dir/" + n)
		}
		c.root.Stat("r/file")
		c.root.Chmod("rhard.file", 0o1600)
		c.root.Stat("r/file")
		c.root.Link("nothing", "x")
		c.root.Link("r/file", "nothing/x")
		c.root.Link("r/file", "r/file/x")
	}},
	{"unlink", func(c *users) {
		kinds(c.root, "k")
		c.root.Mkdir("k/full", 0o755)
		c.root.Make("k/full/x", "x", 0o644)
	}, func(c *users) {
		fd := c.root.Open("k/file", unix.O_RDWR, 0)
		c.root.Utimens("k", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0)
		c.root.Rmdir("k/full")
		c.root.Stat("k") // what failed has not changed it
		for _, n := range append(kindNames, "full", "nothing", "full/x/y") {
			c.root.Rmdir("k/" + n)
			c.root.Unlink("k/" + n)
			c.root.Stat("k/" + n)
		}
		c.root.Stat("k")
		c.root.Fstat(fd)
		c.root.Write(fd, "more")
		c.root.Pread(fd, 20, 0)
		c.root.Ftruncate(fd, 2)
		c.root.Fchmod(fd, 0o600)
		c.root.Fstat(fd)
		c.root.Rmdir("k/full/.")
		c.root.Rmdir("k/full/..")
		c.root.Rmdir(".")
		c.root.Rmdir("k")
		c.root.Unlink("k/full/x")
		c.root.Rmdir("k/full")
		c.root.Rmdir("k")
		c.root.Names(".")
	}},
}

// renameCases are about rename and its flags.
var renameCases = []testCase{
	{"rename", func(c *users) {
		for _, d := range []string{"a", "b"} {
			kinds(c.root, d)
			c.root.Mkdir(d+"/full", 0o755)
			c.root.Make(d+"/full/x", d, 0o644)
		}
	}, func(c *users) {
		kinds := append(kindNames, "full", "nothing")
		c.root.Rename("a/file", "b/file", 8)
		c.root.Rename("a/file", "b/nothing", unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE)
		for _, flags := range []uint{unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, 0} {
			for _, from := range kinds {
				for _, to := range kinds {
					c.root.Rename("a/"+from, "b/"+to, flags)
					c.root.Stat("a/" + from)
					c.root.Stat("b/" + to)
					c.root.Rename("b/"+to, "a/"+from, unix.RENAME_NOREPLACE) // back, if it went
				}
			}
		}
		c.root.Names("a")
		c.root.Names("b")
	}},
	{"renamedir", func(c *users) {
		c.root.Mkdir("d", 0o755)
		c.root.Mkdir("d/e", 0o755)
		c.root.Mkdir("d/e/f", 0o755)
		c.root.Make("d/file", "x", 0o644)
		c.root.Link("d/file", "d/same")
		c.alice.Mkdir("alices", 0o755)
		c.alice.Mkdir("alices/sub", 0o755)
		c.root.Mkdir("alices/roots", 0o755)
		c.root.Mkdir("open", 0o777)
		c.root.Chmod("open", 0o777)
	}, func(c *users) {
		c.root.Rename("d", "d/e/g", 0)
		c.root.Rename("d/e", "d", 0)
		c.root.Rename("d", "d/e", unix.RENAME_EXCHANGE)
		c.root.Rename("d/e/f", "d", unix.RENAME_EXCHANGE)
		c.root.Rename("d", "d", 0)
		c.root.Rename("d/.", "x", 0)
		c.root.Rename("d/..", "x", 0)
		c.root.Rename("d", "x/.", 0)
		c.root.Rename("d/file", "d/same", 0) // both are one file: nothing happens
		c.root.Names("d")
		c.root.Stat("d/file")
		c.root.Rename("d/same", "/proc/self/x", 0)
		c.root.Rename("d/same", "/dev/shm/lazymig.x", 0)
		c.root.Utimens("d", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0)
		c.root.Utimens("d/e", unix.Timespec{Sec: 1}, unix.Timespec{Sec: 1}, 0)
		c.root.Rename("d/same", "d/e/same", 0)
		c.root.Stat("d")
		c.root.Stat("d/e")
		c.root.Rename("d/e/f", "f", 0) // takes a link from one and gives it to the other
		c.root.Stat("d/e")
		c.root.Stat(".")
		c.alice.Rename("alices/sub", "open/sub", 0)
		c.alice.Rename("alices/roots", "open/roots", 0) // its ".." may not be changed
		c.alice.Rename("alices/roots", "alices/roots2", 0)
		c.bob.Rename("alices/roots2", "alices/x", 0)
		c.root.Names("open")
		c.root.Names("alices")
	}},
}
