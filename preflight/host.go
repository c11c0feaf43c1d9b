package preflight

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"github.com/lazymig/lazymig/setup"
)

// Host says whether this host can be the source or the target of a migration, and names each fallback.
func Host(ctx context.Context, opt HostOptions) []Finding {
	f := LocalFacts(ctx, opt)
	return f.host()
}

// need is a feature, what it is for, and what happens without it.
type need struct {
	feature string
	without Level
	what    string
	why     string
	do      string
}

var needs = []need{
	{featUffd, Refuse, "userfaultfd with fork, remap, remove and unmap events", "memory cannot follow page by page", "a kernel with CONFIG_USERFAULTFD; run as root"},
	{LazyShared, Info, "userfaultfd for shared memory", "fallback: shared memory is copied while the tree stands still", "a kernel ≥ 4.11"},
	{featPoison, Info, "UFFDIO_POISON (6.6)", "a poisoned page makes the migration wait", "a kernel ≥ 6.6"},
	{featPagemapScan, Info, "PAGEMAP_SCAN (6.7)", "fallback: pagemap is read, 8 bytes a page", "a kernel ≥ 6.7 is faster"},
	{featFuse, Refuse, "/dev/fuse", "files cannot be reached at the target", "modprobe fuse"},
	{featPassthrough, Info, "FUSE passthrough (6.9)", "fallback: every read and write passes the daemon until detached", "a kernel ≥ 6.9 is faster"},
	{featResend, Warn, "FUSE_NOTIFY_RESEND (6.9)", "if the process that serves the tree's files dies, they fail with ENOTCONN", "a kernel ≥ 6.9 as the target"},
	{featFreezer, Refuse, "the cgroup v2 freezer", "the tree cannot be stopped as one", "a kernel ≥ 5.14 with cgroup v2"},
	{featTimeNS, Refuse, "time namespaces", "the monotonic clock would jump at the target", "a kernel with CONFIG_TIME_NS"},
	{featPidfdGetfd, Refuse, "pidfd_getfd", "descriptors of the tree cannot be kept", "a kernel ≥ 5.6; run as root"},
	{featUnixDiag, Warn, "unix_diag", "peers of AF_UNIX sockets stay unknown, a dump may fail late", "modprobe unix_diag"},
	{featPtrace, Refuse, "ptrace", "Yama forbids it to everybody", "sysctl kernel.yama.ptrace_scope=1 (needs a reboot when it is 3)"},
	{"cap-sys-admin", Refuse, "CAP_SYS_ADMIN", "namespaces and mounts need it", "run as root"},
	{"cap-sys-ptrace", Refuse, "CAP_SYS_PTRACE", "other processes' memory needs it", "run as root"},
	{"cap-chown", Refuse, "CAP_CHOWN", "files of the tree keep their owners", "run as root"},
	{"cap-dac-override", Refuse, "CAP_DAC_OVERRIDE", "files of the tree must be readable", "run as root"},
	{"cap-kill", Refuse, "CAP_KILL", "the tree has to be stopped", "run as root"},
	{"cap-setuid", Refuse, "CAP_SETUID", "the tree's users are restored", "run as root"},
	{"cap-net-admin", Refuse, "CAP_NET_ADMIN", "sockets are restored and destroyed with it", "run as root"},
	{"cap-sys-chroot", Refuse, "CAP_SYS_CHROOT", "the capsule has a root of its own", "run as root"},
	{"cap-sys-nice", Warn, "CAP_SYS_NICE", "priorities and affinity cannot be restored", "run as root"},
	{"cap-sys-resource", Warn, "CAP_SYS_RESOURCE", "trees of another user than root cannot be dumped", "give lazymig all of root's capabilities"},
	{"cap-checkpoint-restore", Warn, "CAP_CHECKPOINT_RESTORE", "CAP_SYS_ADMIN stands in", "run as root"},
}

func (f *Facts) host() []Finding {
	var out []Finding
	add := func(code string, bad bool, level Level, what, why, do string) {
		if !bad {
			level, why, do = OK, "", ""
		}
		out = append(out, Finding{Code: code, Level: level, What: what, Why: why, Do: do})
	}
	add("kernel", !kernelAtLeast(f.Kernel, 6, 1), Refuse, "Linux "+f.Kernel, "lazymig needs 6.1", "boot a newer kernel")
	for _, n := range needs {
		what := n.what
		if !f.Features[n.feature] {
			what = "no " + what
		}
		add(n.feature, !f.Features[n.feature], n.without, what, n.why, n.do)
	}
	out = append(out, f.criu("criu"))
	add("run-tmpfs", !f.RunTmpfs, Warn, "/run: "+size(f.RunFree)+" free", "it is not a tmpfs: CRIU probes the kernel anew for each dump and restore (30 ms)", "mount a tmpfs on /run")
	add("state-dir", f.StateFree < 16<<20, Refuse, f.StateDir+": "+size(f.StateFree)+" free", "records of migrations are kept there", "make room, or choose another --state-dir")
	sort.SliceStable(out, func(i, j int) bool { return out[i].Level > out[j].Level })
	return out
}

// criu is the finding about CRIU.
func (f *Facts) criu(code string) Finding {
	const install = "lazymig setup installs it"
	switch {
	case f.CRIU == "":
		return Finding{Code: code, Level: Refuse, What: "no CRIU", Why: strings.TrimSpace(f.CRIUError), Do: install}
	case !setup.NewEnough(f.CRIU):
		return Finding{Code: code, Level: Refuse, What: "CRIU " + f.CRIU, Why: "lazymig needs " + setup.Least, Do: install}
	case f.CRIUError != "":
		return Finding{Code: code, Level: Refuse, What: "CRIU " + f.CRIU, Why: f.CRIUError, Do: "see what criu check says"}
	}
	return Finding{Code: code, Level: OK, What: "CRIU " + f.CRIU}
}

// size prints bytes for people.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%d kB", n>>10)
}
