package fsmodel

import "golang.org/x/sys/unix"

// kinds makes one file of each kind in a directory: a file, a directory, a link to either, a FIFO, a socket, devices.
func kinds(u *User, dir string) {
	u.Mkdir(dir, 0o755)
	u.Make(dir+"/file", "contents", 0o644)
	u.Mkdir(dir+"/dir", 0o755)
	u.Symlink("file", dir+"/link")
	u.Symlink("dir", dir+"/dirlink")
	u.Symlink("nothing", dir+"/dangling")
	u.Mkfifo(dir+"/fifo", 0o644)
	u.Mknod(dir+"/socket", unix.S_IFSOCK|0o644, 0)
	u.Mknod(dir+"/char", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3)))
	u.Mknod(dir+"/block", unix.S_IFBLK|0o644, int(unix.Mkdev(7, 200)))
}

var kindNames = []string{"file", "dir", "link", "dirlink", "dangling", "fifo", "socket", "char", "block"}

// modeCases are about chmod, access, and the bits that go by themselves.
var modeCases = []testCase{
	{"chmod", func(c *users) {
		kinds(c.root, "k")
	}, func(c *users) {
		for _, n := range kindNames {
			p := "k/" + n
			c.root.Chmod(p, 0o111)
			c.root.Stat(p)
			c.root.Chmod(p, 0o7777)
			c.root.Stat(p)
			c.alice.Chmod(p, 0o600) // not the owner's
			c.root.Lchown(p, 1001, 1001)
			c.alice.Chmod(p, 0o640)
			c.bob.Chmod(p, 0o666)
			c.root.Stat(p)
		}
		c.root.Chmod("nothing", 0o644)
		c.root.Chmod("k/file/below", 0o644)
		c.root.Chmod("nothing/below", 0o644)
	}},
	{"groupbit", func(c *users) {
		c.alice.Make("own", "x", 0o755)
		c.alice.Mkdir("dir", 0o755)
		c.root.Make("other", "x", 0o755)
		c.root.Chown("other", 1001, 1002)
		c.root.Make("second", "x", 0o755)
		c.root.Chown("second", 1001, 2001)
	}, func(c *users) {
		for _, p := range []string{"own", "other", "second", "dir"} { // of a file whose group the owner is not in, set-group-ID goes
			c.alice.Chmod(p, 0o2755)
			c.alice.Stat(p)
			c.alice.Chmod(p, 0o4755)
			c.alice.Stat(p)
			c.alice.Chmod(p, 0o6711)
			c.root.Stat(p)
			c.root.Chmod(p, 0o1755)
			c.alice.Stat(p)
			c.alice.Chmod(p, 0o1777)
			c.alice.Stat(p)
		}
	}},
	{"writtenbits", func(c *users) {
		for _, m := range []string{"a", "b", "c", "d", "e", "f", "g"} {
			c.alice.Make(m, "some contents", 0o6777)
		}
		c.alice.Make("noexec", "some contents", 0o2666) // without execution the bit is for locks
	}, func(c *users) {
		c.bob.Write(c.bob.Open("a", unix.O_WRONLY, 0), "x")
		c.bob.Truncate("b", 3)
		c.bob.Ftruncate(c.bob.Open("c", unix.O_RDWR, 0), 3)
		c.bob.Open("d", unix.O_WRONLY|unix.O_TRUNC, 0)
		c.bob.Fallocate(c.bob.Open("e", unix.O_WRONLY, 0), 0, 0, 4096)
		c.root.Write(c.root.Open("f", unix.O_WRONLY, 0), "x") // who may set them keeps them
		c.bob.Write(c.bob.Open("noexec", unix.O_WRONLY, 0), "x")
		from, to := c.bob.Open("f", unix.O_RDONLY, 0), c.bob.Open("g", unix.O_WRONLY, 0)
		c.bob.call(func() error { _, err := unix.CopyFileRange(from, nil, to, nil, 5, 0); return err }, "copy")
		for _, p := range []string{"a", "b", "c", "d", "e", "f", "g", "noexec"} {
			c.alice.Stat(p)
		}
		c.alice.Chmod("a", 0o6777)
		c.alice.Write(c.alice.Open("a", unix.O_WRONLY, 0), "y") // the owner, too
		c.alice.Stat("a")
	}},
	{"access", func(c *users) {
		for _, m := range []uint32{0, 0o100, 0o200, 0o400, 0o700, 0o070, 0o007, 0o077, 0o707, 0o770} {
			c.alice.Make("f"+oct(m)[1:], "x", m)
			c.alice.Mkdir("d"+oct(m)[1:], 0o700)
			c.alice.Make("d"+oct(m)[1:]+"/in", "x", 0o666)
			c.alice.Chmod("d"+oct(m)[1:], m)
		}
	}, func(c *users) {
		for _, m := range []uint32{0, 0o100, 0o200, 0o400, 0o700, 0o070, 0o007, 0o077, 0o707, 0o770} {
			for _, u := range c.all() {
				f, d := "f"+oct(m)[1:], "d"+oct(m)[1:]
				for mode := range uint32(8) {
					u.Access(f, mode)
					u.Access(d, mode)
				}
				for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
					u.Open(f, flags, 0)
				}
				u.Names(d)
				u.Stat(d + "/in")
				u.Make(d+"/new", "", 0o600)
				u.Rename(d+"/in", d+"/in2", 0)
				u.Rename(d+"/in2", d+"/in", 0)
				u.Unlink(d + "/new")
			}
		}
	}},
	{"sticky", func(c *users) {
		for _, d := range []string{"plain", "sticky", "alices"} {
			c.root.Mkdir(d, 0o755)
			for _, u := range []*User{c.alice, c.bob} {
				c.root.Chmod(d, 0o777)
				u.Make(d+"/"+u.name, "x", 0o666)
				u.Mkdir(d+"/"+u.name+".dir", 0o777)
				u.Symlink("x", d+"/"+u.name+".link")
				u.Mkfifo(d+"/"+u.name+".fifo", 0o666)
			}
		}
		c.root.Chmod("sticky", 0o1777)
		c.root.Chmod("alices", 0o1777)
		c.root.Lchown("alices", 1001, 1001)
		c.root.Mkdir("away", 0o777)
		c.root.Chmod("away", 0o777)
	}, func(c *users) {
		for _, d := range []string{"plain", "sticky", "alices"} {
			for _, f := range []string{"", ".link", ".fifo"} {
				c.carol.Unlink(d + "/bob" + f)
				c.carol.Rename(d+"/bob"+f, "away/x"+f, 0)
				c.carol.Rename("away/x"+f, d+"/bob"+f, 0)
				c.carol.Link(d+"/bob"+f, d+"/hard"+f)
				c.alice.Rename(d+"/alice"+f, d+"/bob"+f, 0) // over another's
				c.bob.Rename(d+"/bob"+f, d+"/bob2"+f, 0)
				c.bob.Unlink(d + "/bob2" + f)
			}
			c.carol.Rmdir(d + "/bob.dir")
			c.carol.Mkdir(d+"/carol.dir", 0o755)
			c.carol.Rename(d+"/carol.dir", d+"/bob.dir", 0)
			c.bob.Rename(d+"/bob.dir", "away/dir"+d, 0)
			c.alice.Rename(d+"/carol.dir", d+"/alice.dir", 0)
			c.alice.Rmdir(d + "/alice.dir")
			c.alice.Rmdir(d + "/carol.dir")
			c.root.Names(d)
		}
	}},
}

// ownerCases are about chown.
var ownerCases = []testCase{
	{"chown", func(c *users) {
		kinds(c.root, "k")
		c.root.Mkdir("mine", 0o755)
		c.root.Chown("mine", 1001, 1001)
		c.alice.Make("mine/f", "x", 0o755)
	}, func(c *users) {
		for _, n := range kindNames {
			p := "k/" + n
			c.root.Lchown(p, 1001, 1002)
			c.root.Stat(p)
			c.root.Lchown(p, -1, 7)
			c.root.Lchown(p, 8, -1)
			c.root.Lchown(p, -1, -1)
			c.root.Chown(p, 9, 9) // through a link
			c.root.Stat(p)
			c.alice.Lchown(p, 1001, -1)
		}
		for _, u := range []*User{c.alice, c.bob} {
			u.Chown("mine/f", 1002, -1)
			u.Chown("mine/f", -1, 2001) // a group of alice's
			u.Chown("mine/f", -1, 1002)
			u.Chown("mine/f", 1001, 1001)
			u.Chown("mine/f", -1, -1)
			u.Stat("mine/f")
		}
		c.root.Chown("nothing", 1, 1)
		c.root.Chown("mine/f/below", 1, 1)
		c.root.Chown("k/dangling", 1, 1)
	}},
	{"chownbits", func(c *users) {
		for _, p := range []string{"a", "b", "c", "d"} {
			c.alice.Make(p, "x", 0o6755)
			c.alice.Make("noexec"+p, "x", 0o2644)
			c.alice.Mkdir("dir"+p, 0o755)
			c.root.Chmod("dir"+p, 0o6755)
		}
	}, func(c *users) {
		for _, pre := range []string{"", "noexec", "dir"} {
			c.alice.Chown(pre+"a", -1, 2001)
			c.alice.Chown(pre+"b", -1, -1)
			c.root.Chown(pre+"c", 1002, 1002)
			c.root.Fchown(c.root.Open(pre+"d", unix.O_RDONLY, 0), -1, -1)
			for _, p := range []string{"a", "b", "c", "d"} {
				c.root.Stat(pre + p)
			}
		}
	}},
	{"inherit", func(c *users) {
		for _, d := range []string{"plain", "setgid", "notmine"} {
			c.root.Mkdir(d, 0o777)
			c.root.Chown(d, 0, 2001)
			c.root.Chmod(d, 0o777)
		}
		c.root.Chmod("setgid", 0o2777)
		c.root.Chown("notmine", 0, 1002)
		c.root.Chmod("notmine", 0o2777)
	}, func(c *users) {
		for _, d := range []string{"plain", "setgid", "notmine"} {
			for _, u := range []*User{c.alice, c.root} {
				p := d + "/" + u.name
				u.Open(p, unix.O_CREAT|unix.O_WRONLY, 0o6777)
				u.Mkdir(p+".dir", 0o7777)
				u.Mkfifo(p+".fifo", 0o7777)
				u.Symlink("x", p+".link")
				u.Mknod(p+".sock", unix.S_IFSOCK|0o2777, 0)
				u.Mkdir(p+".dir/below", 0o700)
				for _, s := range []string{"", ".dir", ".fifo", ".link", ".sock", ".dir/below"} {
					u.Stat(p + s)
				}
			}
		}
	}},
}
