package fsmodel

import (
	"bytes"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// ace is an entry of an ACL, as the kernel's xattr has it: linux/posix_acl_xattr.h, since 2.6.
type ace struct {
	tag, perm uint16
	id        uint32
}

const (
	aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther = 1, 2, 4, 8, 16, 32

	aclNobody = 1<<32 - 1
)

func acl(all ...ace) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, a := range all {
		b = binary.LittleEndian.AppendUint16(b, a.tag)
		b = binary.LittleEndian.AppendUint16(b, a.perm)
		b = binary.LittleEndian.AppendUint32(b, a.id)
	}
	return b
}

const aclAccess, aclDefault = "system.posix_acl_access", "system.posix_acl_default"

// xattrCases are about extended attributes and ACLs.
var xattrCases = []testCase{
	{"xattr", func(c *users) {
		kinds(c.root, "k")
		c.alice.Make("mine", "x", 0o644)
		c.alice.Setxattr("mine", "user.before", []byte("value"), 0)
		c.alice.Setxattr("mine", "user.empty", nil, 0)
		c.root.Mkdir("sticky", 0o777)
		c.root.Chmod("sticky", 0o1777)
	}, func(c *users) {
		for _, n := range kindNames {
			for _, ns := range []string{"user.x", "trusted.x", "security.x"} {
				c.root.Setxattr("k/"+n, ns, []byte("v"), 0)
				c.root.Getxattr("k/"+n, ns, 10)
				c.bob.Getxattr("k/"+n, ns, 10)
				c.bob.Setxattr("k/"+n, ns, []byte("w"), 0)
				c.bob.Removexattr("k/"+n, ns)
			}
			c.bob.Xattrs("k/" + n)
			c.root.Xattrs("k/" + n)
		}
		for _, n := range []string{"", "user.", "user", "x", "none.x", "system.x", "user." + strings.Repeat("n", 250), "user." + strings.Repeat("n", 251), strings.Repeat("n", 300)} {
			c.alice.Setxattr("mine", n, []byte("v"), 0)
			c.alice.Getxattr("mine", n, 10)
			c.alice.Removexattr("mine", n)
		}
		for _, n := range []int{0, 1, 1000, 3000, 65536, 65537} {
			c.alice.Setxattr("mine", "user.v", bytes.Repeat([]byte("v"), n), 0)
			c.alice.Getxattr("mine", "user.v", 0)
			c.alice.Getxattr("mine", "user.v", 999)
			c.alice.Getxattr("mine", "user.v", 70000)
		}
		for _, flags := range []int{unix.XATTR_CREATE, unix.XATTR_REPLACE, unix.XATTR_CREATE | unix.XATTR_REPLACE, 4} {
			c.alice.Setxattr("mine", "user.v", []byte("again"), flags)
			c.alice.Setxattr("mine", "user.other", []byte("new"), flags)
			c.alice.Removexattr("mine", "user.other")
		}
		c.alice.Getxattr("mine", "user.empty", 10)
		c.alice.Removexattr("mine", "user.nothing")
		c.alice.Xattrs("mine")
		c.bob.Setxattr("sticky", "user.x", []byte("v"), 0) // in such a directory the owner's only
		c.root.Setxattr("sticky", "user.x", []byte("v"), 0)
		c.alice.Chmod("mine", 0o200)
		c.alice.Getxattr("mine", "user.before", 10)
		c.alice.Chmod("mine", 0o400)
		c.alice.Setxattr("mine", "user.before", []byte("w"), 0)
		c.root.Getxattr("nothing", "user.x", 10)
	}},
	{"capabilities", func(c *users) {
		for _, p := range []string{"a", "b", "c", "d"} {
			c.alice.Make(p, "x", 0o755)
			c.root.Setxattr(p, "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
		}
	}, func(c *users) {
		c.alice.Setxattr("a", "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0)
		c.alice.Write(c.alice.Open("a", unix.O_WRONLY, 0), "y")
		c.alice.Truncate("b", 0)
		c.root.Chown("c", 1002, -1)
		c.root.Chmod("d", 0o700)
		for _, p := range []string{"a", "b", "c", "d"} {
			c.root.Getxattr(p, "security.capability", 40)
		}
	}},
	{"acl", func(c *users) {
		c.alice.Make("f", "x", 0o640)
		c.alice.Setxattr("f", aclAccess, acl(ace{aclUserObj, 6, aclNobody}, ace{aclUser, 4, 1002}, ace{aclGroupObj, 4, aclNobody}, ace{aclMask, 4, aclNobody}, ace{aclOther, 0, aclNobody}), 0)
		c.alice.Make("masked", "x", 0o640)
		c.alice.Setxattr("masked", aclAccess, acl(ace{aclUserObj, 6, aclNobody}, ace{aclUser, 6, 1002}, ace{aclGroupObj, 6, aclNobody}, ace{aclMask, 4, aclNobody}, ace{aclOther, 0, aclNobody}), 0)
		c.alice.Make("group", "x", 0o600)
		c.alice.Setxattr("group", aclAccess, acl(ace{aclUserObj, 6, aclNobody}, ace{aclGroupObj, 0, aclNobody}, ace{aclGroup, 6, 1002}, ace{aclMask, 6, aclNobody}, ace{aclOther, 0, aclNobody}), 0)
		c.alice.Mkdir("d", 0o755)
		c.alice.Setxattr("d", aclAccess, acl(ace{aclUserObj, 7, aclNobody}, ace{aclUser, 7, 1002}, ace{aclGroupObj, 5, aclNobody}, ace{aclMask, 7, aclNobody}, ace{aclOther, 0, aclNobody}), 0)
		c.alice.Setxattr("d", aclDefault, acl(ace{aclUserObj, 7, aclNobody}, ace{aclUser, 6, 1003}, ace{aclGroupObj, 5, aclNobody}, ace{aclMask, 7, aclNobody}, ace{aclOther, 1, aclNobody}), 0)
	}, func(c *users) {
		for _, p := range []string{"f", "masked", "group"} {
			for _, u := range c.all() {
				u.Open(p, unix.O_RDONLY, 0)
				u.Open(p, unix.O_WRONLY, 0)
				u.Access(p, unix.R_OK|unix.W_OK)
				u.Getxattr(p, aclAccess, 100)
				u.Stat(p)
			}
			c.alice.Chmod(p, 0o666) // the mask
			c.alice.Getxattr(p, aclAccess, 100)
			c.bob.Open(p, unix.O_RDWR, 0)
			c.alice.Chmod(p, 0o600)
			c.bob.Open(p, unix.O_RDONLY, 0)
			c.bob.Removexattr(p, aclAccess)
			c.alice.Removexattr(p, aclAccess)
			c.alice.Stat(p)
			c.alice.Xattrs(p)
		}
		for _, u := range []*User{c.bob, c.carol, c.alice} {
			p := "d/" + u.name
			u.Make(p, "x", 0o666)
			u.Mkdir(p+".dir", 0o777)
			u.Mkfifo(p+".fifo", 0o666)
			u.Symlink("x", p+".link")
			for _, s := range []string{"", ".dir", ".fifo", ".link"} {
				c.root.Stat(p + s)
				c.root.Getxattr(p+s, aclAccess, 100)
				c.root.Getxattr(p+s, aclDefault, 100)
			}
			c.carol.Open(p, unix.O_RDWR, 0)
			u.Names("d")
		}
		c.alice.Setxattr("f", aclDefault, acl(ace{aclUserObj, 6, aclNobody}, ace{aclGroupObj, 4, aclNobody}, ace{aclOther, 0, aclNobody}), 0) // a file has none
		c.alice.Setxattr("f", aclAccess, acl(ace{aclUserObj, 6, aclNobody}, ace{aclGroupObj, 4, aclNobody}, ace{aclOther, 4, aclNobody}), 0)  // no more than a mode
		c.alice.Stat("f")
		c.alice.Xattrs("f")
		c.alice.Setxattr("f", aclAccess, acl(ace{aclUser, 6, 5}), 0) // not valid
		c.alice.Setxattr("f", aclAccess, []byte{2, 0, 0, 0, 1}, 0)
		c.alice.Setxattr("f", aclAccess, []byte{7, 0, 0, 0}, 0)
		c.bob.Setxattr("f", aclAccess, acl(ace{aclUserObj, 7, aclNobody}, ace{aclGroupObj, 7, aclNobody}, ace{aclOther, 7, aclNobody}), 0)
		c.alice.Setxattr("f", aclAccess, nil, 0) // takes it away
		c.alice.Stat("f")
		// set-group-ID of a file whose group the owner is not in goes with an ACL, too
		c.root.Chown("f", 1001, 1002)
		c.root.Chmod("f", 0o2755)
		c.alice.Setxattr("f", aclAccess, acl(ace{aclUserObj, 7, aclNobody}, ace{aclUser, 5, 7}, ace{aclGroupObj, 5, aclNobody}, ace{aclMask, 7, aclNobody}, ace{aclOther, 5, aclNobody}), 0)
		c.alice.Stat("f")
	}},
}

// nodeCases are about what is made, by whom.
var nodeCases = []testCase{
	{"nodes", func(c *users) {
		c.root.Mkdir("before", 0o755)
		c.root.Chmod("before", 0o777)
		c.alice.Mkfifo("before/fifo", 0o600)
		c.root.Mknod("before/char", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 7)))
	}, func(c *users) {
		for _, u := range c.all() {
			for i, mode := range []uint32{unix.S_IFREG | 0o4751, 0o640, unix.S_IFIFO | 0o7777, unix.S_IFSOCK | 0o777, unix.S_IFCHR | 0o666, unix.S_IFBLK | 0o666, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777, 0o130000} {
				p := u.name + string(rune('a'+i))
				dev := 0
				if mode&unix.S_IFMT == unix.S_IFCHR {
					dev = int(unix.Mkdev(1, 3))
				}
				u.Mknod(p, mode, dev)
				u.Stat(p)
				u.Mknod(p, mode, dev) // there already
			}
			u.Mkdir(u.name+".dir", 0o7777)
			u.Stat(u.name + ".dir")
			u.Mkdir(u.name+".dir", 0o700)
			u.Symlink("nowhere", u.name+".dir")
			u.Open("before/fifo", unix.O_RDWR|unix.O_NONBLOCK, 0)
			u.Stat("before/char")
		}
		fd := c.root.Open("roote", unix.O_WRONLY, 0) // /dev/null, by another name
		c.root.Write(fd, "nothing")
		c.root.Fstat(fd)
		c.root.Open("before/char", unix.O_RDWR, 0)
		c.root.Write(c.root.Open("before/char", unix.O_WRONLY, 0), "full")
	}},
	{"unnamed", nil, func(c *users) {
		// a file that is made without a name may get one
		fd := c.alice.Open(".", unix.O_TMPFILE|unix.O_RDWR, 0o640)
		c.alice.Write(fd, "x")
		c.alice.Fstat(fd)
	}},
}
