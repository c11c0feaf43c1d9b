package preflight

import (
	"slices"
	"testing"
)

func TestResidual(t *testing.T) {
	const drained = "1 0 0:50 / / rw - fuse.lazymig lazymig rw\n2 1 0:50 /dev/shm /dev/shm rw - fuse.lazymig lazymig rw\n3 1 0:5 / /proc rw - proc proc rw\n"
	if got := residual(drained); len(got) > 0 {
		t.Errorf("a tree that is not detached leaves behind %q", got)
	}
	const far = "1 0 8:1 /x / rw,relatime shared:1 - ext4 /dev/sda rw\n2 1 0:50 /srv/far /srv/far rw - fuse.lazymig lazymig rw\n4 1 0:50 /a\\040b /a\\040b rw - fuse.lazymig lazymig rw\n" +
		"3 1 0:6 / /mnt rw - fuse.sshfs a:/ rw\n5 1"
	if got, want := residual(far), []string{"/srv/far", "/a b"}; !slices.Equal(got, want) {
		t.Errorf("left behind are %q, want %q", got, want)
	}
}
