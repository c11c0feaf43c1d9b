package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"
)

// clockWarn is the difference of wall clocks above which programs may notice.
const clockWarn = 100 * time.Millisecond

// spare is kept free beside what the tree itself needs: images, records, lazymig's own processes.
const spare = 64 << 20

// Clock is the finding about the target's wall clock: ahead of the source's by so much, known to within off.
func Clock(ahead, off time.Duration) Finding {
	f := Finding{Code: "clock", Level: OK, What: fmt.Sprintf("the target's clock is %v ahead (± %v)", ahead.Round(time.Microsecond), off.Round(time.Microsecond))}
	if ahead.Abs() > clockWarn {
		f.Level, f.Why, f.Do = Warn, "the process will see its wall clock jump", "run NTP on both hosts"
	}
	return f
}

// Compare says whether the target can take over this tree. Each thing compared gives a finding, OK ones too.
func Compare(tree *Tree, source, target Facts) []Finding {
	c := &comparison{tree: tree, src: &source, dst: &target}
	c.machine()
	c.cpu()
	c.kernel()
	c.memory()
	c.disk()
	c.network()
	c.security()
	c.add(target.criu("target-criu"))
	sort.SliceStable(c.out, func(i, j int) bool { return c.out[i].Level > c.out[j].Level })
	return c.out
}

type comparison struct {
	tree     *Tree
	src, dst *Facts
	out      []Finding
}

func (c *comparison) add(f Finding) {
	if f.Level == Refuse && f.PID == 0 {
		f.PID = c.tree.Root
	}
	c.out = append(c.out, f)
}

// check adds a refusal if bad, else an OK.
func (c *comparison) check(code string, bad bool, what, why, do string) {
	f := Finding{Code: code, Level: OK, What: what}
	if bad {
		f.Level, f.Why, f.Do = Refuse, why, do
	}
	c.add(f)
}

func (c *comparison) machine() {
	c.check("arch", c.src.Arch != c.dst.Arch, fmt.Sprintf("%s here, %s there", c.src.Arch, c.dst.Arch), "machine code cannot be moved between architectures", "choose another target")
	c.check("page-size", c.src.PageSize != c.dst.PageSize, fmt.Sprintf("pages of %d bytes here, %d there", c.src.PageSize, c.dst.PageSize), "memory is laid out in pages", "boot a kernel with the same page size")
	highest := 0
	for _, t := range c.tree.Tasks {
		for _, tid := range t.TIDs {
			highest = max(highest, tid)
		}
	}
	if c.dst.PidMax > 0 {
		c.check("pid-max", highest >= c.dst.PidMax, fmt.Sprintf("highest process ID %d, the target's limit is %d", highest, c.dst.PidMax), "it could not have the same ID there", "sysctl kernel.pid_max there")
	}
}

// userFlags are the parts of the CPU that a program can find by cpuid and use. Others (virtualisation, mitigations, power)
// differ between hosts and kernels and do not matter to it. A trailing * is any ending.
var userFlags = []string{
	"3dnow*", "abm", "adx", "aes", "amx*", "avx*", "bmi1", "bmi2", "cldemote", "clflush*", "clwb", "clzero", "cmov", "cmpccxadd", "cx16", "cx8",
	"enqcmd", "erms", "f16c", "fma*", "fsgsbase", "fsrm", "fsrs", "fsrc", "fxsr*", "fzrm", "gfni", "hle", "lahf_lm", "lwp", "misalignsse", "mmx*", "monitorx",
	"movbe", "movdir*", "mwaitx", "ospke", "pclmulqdq", "pku", "pni", "popcnt", "ptwrite", "rdpid", "rdrand", "rdseed", "rdtscp", "rtm",
	"serialize", "sha*", "sm3", "sm4", "sse*", "ssse3", "tbm", "tsxldtrk", "user_shstk", "vaes", "vpclmulqdq", "waitpkg", "wbnoinvd", "xgetbv1", "xop", "xsave*",
}

func usable(flag string) bool {
	return slices.ContainsFunc(userFlags, func(p string) bool {
		head, any := strings.CutSuffix(p, "*")
		return flag == p || any && strings.HasPrefix(flag, head)
	})
}

func (c *comparison) cpu() {
	x86 := c.src.Arch == "x86_64" || c.src.Arch == "i686"
	var missing []string
	for _, f := range c.src.CPUFlags {
		if (usable(f) || !x86) && !slices.Contains(c.dst.CPUFlags, f) {
			missing = append(missing, f)
		}
	}
	what := fmt.Sprintf("the target's CPU (%s) has all that this one (%s) offers to programs", c.dst.CPUModel, c.src.CPUModel)
	if len(missing) > 0 {
		what = fmt.Sprintf("the target's CPU (%s) lacks %s", c.dst.CPUModel, strings.Join(missing, " "))
	}
	c.check("cpu-flags", len(missing) > 0, what, "the process found them when it started and may use them", "choose a target with the same or a newer CPU")
}

// kernel: what is needed at the target at all, and what the source has and the target has not.
func (c *comparison) kernel() {
	c.check("target-kernel", !kernelAtLeast(c.dst.Kernel, 6, 1), "Linux "+c.dst.Kernel+" there", "lazymig needs 6.1", "boot a newer kernel there")
	var a, b int
	if n, _ := fmt.Sscanf(c.src.Kernel, "%d.%d", &a, &b); n == 2 && !kernelAtLeast(c.dst.Kernel, a, b) {
		c.add(Finding{
			Code: "older-kernel", Level: Warn, What: fmt.Sprintf("Linux %s here, %s there", c.src.Kernel, c.dst.Kernel),
			Why: "system calls that the process has used may be missing there", Do: "choose a target with the same or a newer kernel",
		})
	}
	for _, n := range needs {
		if n.feature == featFreezer || n.feature == featPidfdGetfd || n.feature == featUnixDiag || c.dst.Features[n.feature] {
			continue // the source's need, or there
		}
		if n.feature == "cap-sys-resource" && !slices.ContainsFunc(c.tree.Tasks, func(t Task) bool { return t.UID != 0 }) {
			continue // only limits of other users need it
		}
		c.add(Finding{Code: "target-" + n.feature, Level: n.without, What: "the target has no " + n.what, Why: n.why, Do: n.do + " there"})
	}
}

func (c *comparison) memory() {
	need := c.tree.MemoryPresent + c.tree.MemoryPresent/10
	c.check("memory", c.dst.MemFree < need, fmt.Sprintf("%s of memory free there, the tree has %s", size(c.dst.MemFree), size(c.tree.MemoryPresent)),
		"it needs its memory and a tenth more", "free memory there, or choose another target")
}

// disk: images go to /run, or to the state directory, as files that are open do.
func (c *comparison) disk() {
	images := c.tree.EagerBytes + spare
	files := c.tree.FileBytes + c.tree.FileBytes/10 + spare
	if c.dst.ImagesOnDisk {
		files, images = files+images, 0
	}
	c.check("run-space", c.dst.RunFree < images, fmt.Sprintf("%s free on /run there, images need up to %s", size(c.dst.RunFree), size(images)),
		"images are kept in memory until the tree runs", "mount a larger tmpfs on /run there, or start the agent with --images-on-disk")
	c.check("disk", c.dst.StateFree < files, fmt.Sprintf("%s free on %s there, open files need %s", size(c.dst.StateFree), c.dst.StateDir, size(files)),
		"the tree's files move to the target", "make room there, or choose another --state-dir")
}

func (c *comparison) network() {
	var local []netip.Addr
	for _, a := range c.dst.Addresses {
		if ip, err := netip.ParseAddr(a); err == nil {
			local = append(local, ip.Unmap())
		}
	}
	for _, l := range c.tree.Listens {
		ip, err := netip.ParseAddr(l.Addr)
		if err != nil {
			continue
		}
		ip = ip.Unmap()
		at := fmt.Sprintf("%s %s", l.Proto, netip.AddrPortFrom(ip, l.Port))
		switch i := slices.IndexFunc(c.dst.Bound, func(b Listen) bool { return collide(l, b) }); {
		case strings.HasSuffix(l.Proto, "6") && !c.dst.Features[featIPv6]:
			c.add(Finding{Code: "ipv6", Level: Refuse, What: "the tree uses " + at, Why: "the target has no IPv6", Do: "switch it on there"})
		case !ip.IsUnspecified() && !ip.IsLoopback() && !ip.IsMulticast() && !slices.Contains(local, ip.WithZone("")):
			c.add(Finding{Code: "address-missing", Level: Refuse, What: "the tree uses " + at, Why: "the target does not have this address", Do: "move or add the address there: ip address add " + ip.String() + " dev …"})
		case i >= 0:
			b := c.dst.Bound[i]
			c.add(Finding{Code: "port-taken", Level: Refuse, What: "the tree uses " + at, Why: fmt.Sprintf("the target has somebody on %s %s port %d", b.Proto, b.Addr, b.Port), Do: "stop that service there"})
		default:
			c.add(Finding{Code: "port", Level: OK, What: at + " is free there"})
		}
	}
}

// collide says that two sockets cannot be bound at once. Any-addresses of both families count as overlapping: whether
// a v6 socket is v6-only is not listed.
func collide(a, b Listen) bool {
	if a.Port != b.Port || strings.TrimSuffix(a.Proto, "6") != strings.TrimSuffix(b.Proto, "6") {
		return false
	}
	x, err1 := netip.ParseAddr(a.Addr)
	y, err2 := netip.ParseAddr(b.Addr)
	if err1 != nil || err2 != nil {
		return false
	}
	x, y = x.Unmap().WithZone(""), y.Unmap().WithZone("")
	switch {
	case x == y:
		return true
	case x.IsUnspecified() && y.IsUnspecified():
		return true
	case x.IsUnspecified():
		return x.Is6() || y.Is4()
	case y.IsUnspecified():
		return y.Is6() || x.Is4()
	}
	return false
}

// security: a profile that confines the tree must be there too.
func (c *comparison) security() {
	for _, p := range c.tree.LSMProfiles {
		name := p
		if i := strings.LastIndex(p, " ("); i > 0 {
			name = p[:i]
		}
		selinux := strings.Count(p, ":") >= 3
		ok := slices.Contains(c.dst.Profiles, name)
		if selinux {
			ok = slices.Contains(c.dst.LSM, "selinux")
		}
		c.check("lsm-profile", !ok, fmt.Sprintf("the tree is confined by %q", p), "the target does not know that profile", "load it there")
	}
	if len(c.tree.LSMProfiles) == 0 {
		c.add(Finding{Code: "lsm-profile", Level: OK, What: "no security profile confines the tree"})
	}
}
