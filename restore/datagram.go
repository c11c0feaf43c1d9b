package restore

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Datagram sockets are connected to a name, and stay connected to the socket that had it: syslog(3) to /dev/log, journald's clients to
// /run/systemd/journal/socket. At the restore CRIU connects them anew by that name (ext_unix_sk). It means this host's socket then. An
// abstract name does so by itself, since capsule and host share the network namespace; a path leads into the capsule's root, whose files
// are the source's, so this host's socket is bound over it.

// ValidDatagram says whether a name is one that a capsule can reach: abstract, or an absolute path.
func ValidDatagram(name string) bool {
	const most = 108 // sun_path, linux/un.h
	if len(name) < 2 || len(name) > most {
		return false
	}
	return name[0] == 0 || name[0] == '/' && !strings.Contains(name, "\x00")
}

// reach says whether each of the names can be connected to here.
func reach(names []string) error {
	for _, name := range names {
		if err := reachOne(name); err != nil {
			shown := strings.Replace(name, "\x00", "@", 1) // as ss(8) shows it
			return fmt.Errorf("the tree sends datagrams to %s: connect to it here: %w; start on this host what receives there, or let the tree close its socket", shown, err)
		}
	}
	return nil
}

func reachOne(name string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if rest, abstract := strings.CutPrefix(name, "\x00"); abstract {
		name = "@" + rest // as x/sys/unix writes it
	}
	return unix.Connect(fd, &unix.SockaddrUnix{Name: name})
}

// bindDatagrams binds this host's sockets over those of the root, which is not the root yet.
func bindDatagrams(root string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	dir, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	defer dir.Close()
	for _, name := range names {
		if name[0] == 0 {
			continue
		}
		if err := bindDatagram(dir, name); err != nil {
			return fmt.Errorf("bind socket %s: %w", name, err)
		}
	}
	return nil
}

func bindDatagram(root *os.File, name string) error {
	here, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open it on this host: %w", err)
	}
	defer unix.Close(here)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	there, err := unix.Openat2(int(root.Fd()), name, &how)
	if err != nil {
		return fmt.Errorf("open it among the tree's files: %w", err)
	}
	defer unix.Close(there)
	var a, b unix.Stat_t
	if err := unix.Fstat(here, &a); err != nil {
		return err
	}
	if err := unix.Fstat(there, &b); err != nil {
		return err
	}
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return nil // below /dev, which is this host's
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", here), fmt.Sprintf("/proc/self/fd/%d", there), "", unix.MS_BIND, "")
}
