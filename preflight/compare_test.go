package preflight

import (
	"slices"
	"testing"
	"time"
)

// twins is a tree and two hosts that differ in nothing.
func twins() (*Tree, Facts, Facts) {
	host := func() Facts {
		f := Facts{
			HostName: "h", Kernel: "6.18.4-generic", Arch: "x86_64", PageSize: 4096, CPUs: 2, CPUModel: "model",
			CPUFlags: []string{"fpu", "sse2", "avx2", "constant_tsc", "ibrs"}, MemTotal: 8 << 30, MemFree: 4 << 30, PidMax: 32768,
			StateDir: "/var/lib/lazymig", StateFree: 10 << 30, RunFree: 1 << 30, RunTmpfs: true,
			Addresses: []string{"127.0.0.1", "::1", "10.0.0.7"}, LSM: []string{"apparmor"}, Profiles: []string{"redis"}, CRIU: "4.2.1",
			Features: map[string]bool{featFreezer: true, featIPv6: true},
		}
		for _, n := range needs {
			f.Features[n.feature] = true
		}
		return f
	}
	tree := &Tree{
		Root: 100, Tasks: []Task{{PID: 100, TIDs: []int{100, 101}}}, MemoryPresent: 1 << 30, FileBytes: 1 << 30,
		Listens:     []Listen{{"tcp", "0.0.0.0", 6379}, {"tcp", "127.0.0.1", 80}, {"udp", "10.0.0.7", 53}, {"tcp6", "::1", 443}},
		LSMProfiles: []string{"redis (enforce)"},
	}
	return tree, host(), host()
}

func TestCompareEqualHosts(t *testing.T) {
	tree, a, b := twins()
	for _, f := range Compare(tree, a, b) {
		if f.Level != OK {
			t.Errorf("equal hosts: %s", f)
		}
	}
	for _, f := range a.host() {
		if f.Level != OK {
			t.Errorf("good host: %s", f)
		}
	}
}

// TestCompare breaks one thing at a time. It must be found, and nothing else with it.
func TestCompare(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(tree *Tree, a, b *Facts)
		code  string
		level Level
	}{
		"architecture":       {func(_ *Tree, _, b *Facts) { b.Arch = "aarch64" }, "arch", Refuse},
		"page size":          {func(_ *Tree, _, b *Facts) { b.PageSize = 65536 }, "page-size", Refuse},
		"low pid_max":        {func(_ *Tree, _, b *Facts) { b.PidMax = 101 }, "pid-max", Refuse},
		"CPU without avx2":   {func(_ *Tree, _, b *Facts) { b.CPUFlags = []string{"fpu", "sse2"} }, "cpu-flags", Refuse},
		"memory, just short": {func(_ *Tree, _, b *Facts) { b.MemFree = 1<<30 + 1<<30/10 - 1 }, "memory", Refuse},
		"disk":               {func(_ *Tree, _, b *Facts) { b.StateFree = 1 << 30 }, "disk", Refuse},
		"run":                {func(_ *Tree, _, b *Facts) { b.RunFree = 1 << 20 }, "run-space", Refuse},
		"images on disk":     {func(_ *Tree, _, b *Facts) { b.RunFree, b.ImagesOnDisk, b.StateFree = 0, true, 1<<30 }, "disk", Refuse},
		"shared memory":      {func(tree *Tree, _, _ *Facts) { tree.EagerBytes = 2 << 30 }, "run-space", Refuse},
		"port taken":         {func(_ *Tree, _, b *Facts) { b.Bound = []Listen{{"tcp", "10.0.0.7", 6379}} }, "port-taken", Refuse},
		"port taken by v6":   {func(_ *Tree, _, b *Facts) { b.Bound = []Listen{{"tcp6", "::", 80}} }, "port-taken", Refuse},
		"UDP port taken":     {func(_ *Tree, _, b *Facts) { b.Bound = []Listen{{"udp", "0.0.0.0", 53}} }, "port-taken", Refuse},
		"address missing":    {func(_ *Tree, _, b *Facts) { b.Addresses = []string{"127.0.0.1", "10.0.0.8"} }, "address-missing", Refuse},
		"no IPv6":            {func(_ *Tree, _, b *Facts) { b.Features[featIPv6] = false }, "ipv6", Refuse},
		"profile":            {func(_ *Tree, _, b *Facts) { b.Profiles = nil }, "lsm-profile", Refuse},
		"SELinux":            {func(tree *Tree, _, _ *Facts) { tree.LSMProfiles = []string{"system_u:system_r:redis_t:s0"} }, "lsm-profile", Refuse},
		"no CRIU":            {func(_ *Tree, _, b *Facts) { b.CRIU, b.CRIUError = "", "find criu: not found" }, "target-criu", Refuse},
		"old CRIU":           {func(_ *Tree, _, b *Facts) { b.CRIU = "3.17" }, "target-criu", Refuse},
		"CRIU that fails":    {func(_ *Tree, _, b *Facts) { b.CRIUError = "criu check: no" }, "target-criu", Refuse},
		"old kernel":         {func(_ *Tree, a, b *Facts) { a.Kernel, b.Kernel = "5.10.0", "5.10.0" }, "target-kernel", Refuse},
		"older kernel":       {func(_ *Tree, _, b *Facts) { b.Kernel = "6.12.3" }, "older-kernel", Warn},
		"no userfaultfd":     {func(_ *Tree, _, b *Facts) { b.Features[featUffd] = false }, "target-" + featUffd, Refuse},
		"no FUSE":            {func(_ *Tree, _, b *Facts) { b.Features[featFuse] = false }, "target-" + featFuse, Refuse},
		"no time namespaces": {func(_ *Tree, _, b *Facts) { b.Features[featTimeNS] = false }, "target-" + featTimeNS, Refuse},
		"no passthrough":     {func(_ *Tree, _, b *Facts) { b.Features[featPassthrough] = false }, "target-" + featPassthrough, Info},
		"no PAGEMAP_SCAN":    {func(_ *Tree, _, b *Facts) { b.Features[featPagemapScan] = false }, "target-" + featPagemapScan, Info},
		"not all of root":    {func(tree *Tree, _, b *Facts) { tree.Tasks[0].UID, b.Features["cap-sys-resource"] = 33, false }, "target-cap-sys-resource", Warn},
		"not root":           {func(_ *Tree, _, b *Facts) { b.Features["cap-sys-admin"] = false }, "target-cap-sys-admin", Refuse},
	} {
		t.Run(name, func(t *testing.T) {
			tree, a, b := twins()
			c.spoil(tree, &a, &b)
			found := false
			for _, f := range Compare(tree, a, b) {
				switch {
				case f.Code == c.code && f.Level == c.level:
					found = true
					if f.What == "" || f.Why == "" || f.Do == "" {
						t.Errorf("without what, why or do: %+v", f)
					}
				case f.Level != OK:
					t.Errorf("also found: %s", f)
				}
			}
			if !found {
				t.Errorf("%s was not found", c.code)
			}
		})
	}
}

// TestCompareForgives has differences that do not matter to a program.
func TestCompareForgives(t *testing.T) {
	tree, a, b := twins()
	b.CPUFlags = []string{"avx512f", "avx2", "sse2", "md_clear"} // constant_tsc and ibrs are the kernel's
	b.Kernel, b.CPUs, b.CRIU = "7.0.1", 1, "4.3"
	b.Features["cap-sys-resource"] = false // the tree is root's
	b.Bound = []Listen{{"udp", "0.0.0.0", 6379}, {"tcp", "10.0.0.7", 80}, {"tcp", "0.0.0.0", 22}}
	for _, f := range Compare(tree, a, b) {
		if f.Level != OK {
			t.Error(f)
		}
	}
	if err := Refusals(Compare(&Tree{}, a, b)); err != nil {
		t.Errorf("no tree: %v", err)
	}
}

func TestClock(t *testing.T) {
	for ahead, want := range map[time.Duration]Level{0: OK, 100 * time.Millisecond: OK, -101 * time.Millisecond: Warn, 1000 * time.Second: Warn} {
		if f := Clock(ahead, time.Millisecond); f.Level != want {
			t.Errorf("%v ahead: %s", ahead, f)
		}
	}
}

// TestHostFindings takes one thing away at a time.
func TestHostFindings(t *testing.T) {
	for _, n := range needs {
		_, f, _ := twins()
		f.Features[n.feature] = false
		i := slices.IndexFunc(f.host(), func(f Finding) bool { return f.Level != OK })
		if got := f.host()[max(i, 0)]; got.Code != n.feature || got.Level != n.without || got.Do == "" {
			t.Errorf("without %s: %s", n.feature, got)
		}
	}
	for code, spoil := range map[string]func(*Facts){
		"kernel":    func(f *Facts) { f.Kernel = "6.0.99" },
		"criu":      func(f *Facts) { f.CRIU = "4.1.1" },
		"run-tmpfs": func(f *Facts) { f.RunTmpfs = false },
		"state-dir": func(f *Facts) { f.StateFree = 0 },
	} {
		_, f, _ := twins()
		spoil(&f)
		if got := f.host()[0]; got.Code != code || got.Level == OK {
			t.Errorf("%s: %s", code, got)
		}
	}
}
