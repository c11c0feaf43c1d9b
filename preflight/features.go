package preflight

import (
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/pagemap"
)

// The features of a kernel that are looked for. Those marked needed have no fallback.
const (
	featUffd        = "userfaultfd-events" // FORK, REMAP, REMOVE, UNMAP: needed at the target
	featPoison      = "uffdio-poison"      // 6.6
	featPagemapScan = "pagemap-scan"       // 6.7
	featFuse        = "fuse"               // needed at the target
	featPassthrough = "fuse-passthrough"   // 6.9
	featResend      = "fuse-resend"        // 6.9
	featFreezer     = "cgroup2-freezer"    // needed at the source
	featTimeNS      = "time-namespace"     // needed at the target
	featPidfdGetfd  = "pidfd-getfd"        // needed at the source
	featUnixDiag    = "unix-diag"
	featIPv6        = "ipv6"
	featPtrace      = "ptrace" // not forbidden by Yama

	// LazyShared: this release can take shared memory lazily, and the kernel, too. Needed at the target for that.
	LazyShared = "lazy-shared-memory"
	// Modes: this release knows in which order memory may come. Needed at the target for all but ModePost.
	Modes = "modes"
	// HotFirst: this release takes a list of the pages that are to come first.
	HotFirst = "hot-first"
	// AheadPacked: this release takes memory that is copied ahead compressed, too.
	AheadPacked = "ahead-packed"
)

// caps are the capabilities that are needed, by bit (include/uapi/linux/capability.h), named cap-….
var caps = map[string]uint{
	"cap-chown": 0, "cap-dac-override": 1, "cap-kill": 5, "cap-setuid": 7, "cap-net-admin": 12, "cap-sys-chroot": 18, "cap-sys-ptrace": 19,
	"cap-sys-admin": 21, "cap-sys-nice": 23, "cap-sys-resource": 24, "cap-checkpoint-restore": 40,
}

func (f *Facts) readFeatures(proc string) {
	have := f.Features
	got := uffdFeatures()
	const events = 1<<1 | 1<<2 | 1<<3 | 1<<6 // FORK, REMAP, REMOVE, UNMAP
	have[featUffd] = got&events == events
	have[LazyShared] = have[featUffd] && got&(1<<5) != 0 // MISSING_SHMEM, 4.11
	have[Modes], have[HotFirst], have[AheadPacked] = true, true, true
	have[featPoison] = got&(1<<14) != 0
	have[featPagemapScan] = pagemap.Probe().Scan
	have[featFuse] = unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) == nil
	have[featPassthrough] = have[featFuse] && kernelAtLeast(f.Kernel, 6, 9)
	have[featResend] = have[featFuse] && kernelAtLeast(f.Kernel, 6, 9)
	have[featTimeNS] = exists(filepath.Join(proc, "self/ns/time"))
	// Where only v1 is mounted, v2 is mounted privately; its freezer needs no controller.
	b, _ := readFile(filepath.Join(proc, "filesystems"))
	have[featFreezer] = (cgroup2Mount(proc) != "" || strings.Contains(string(b), "\tcgroup2\n")) && kernelAtLeast(f.Kernel, 5, 14)
	have[featPidfdGetfd] = pidfdGetfdWorks()
	_, err := unixSockets()
	have[featUnixDiag] = err == nil
	have[featIPv6] = exists(filepath.Join(proc, "self/net/if_inet6"))
	y, err := readFile(filepath.Join(proc, "sys/kernel/yama/ptrace_scope"))
	have[featPtrace] = err != nil || strings.TrimSpace(string(y)) != "3"
	if st, err := readStatus(filepath.Join(proc, "self")); err == nil {
		eff := nthUint(st["CapEff"], 0, 16)
		for name, bit := range caps {
			have[name] = eff&(1<<bit) != 0
		}
	}
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

// kernelAtLeast compares a release such as 6.1.0-18-amd64.
func kernelAtLeast(release string, major, minor int) bool {
	a, rest, _ := strings.Cut(release, ".")
	b, _, _ := strings.Cut(rest, ".")
	if i := strings.IndexFunc(b, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = b[:i]
	}
	x, err1 := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	return err1 == nil && err2 == nil && (x > major || x == major && y >= minor)
}

// uffdFeatures asks a userfaultfd that is closed again what this kernel offers.
func uffdFeatures() uint64 {
	r, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return 0
	}
	fd := int(r)
	defer unix.Close(fd)
	api := uffdioAPI{API: uffdAPI}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uffdioAPICmd, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return 0
	}
	return api.Features
}

func pidfdGetfdWorks() bool {
	fd, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	dup, err := unix.PidfdGetfd(fd, fd, 0)
	if err != nil {
		return false
	}
	unix.Close(dup)
	return true
}
