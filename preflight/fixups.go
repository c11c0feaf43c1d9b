package preflight

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	defaultSlack    = 50_000 // ns, kernel/fork.c
	ioprioWhoProc   = 1
	ioprioClassBits = 13
	ksmMergeAny     = "ksm_merge_any"
)

// findFixups records what CRIU loses without a word, for each thread that differs from the default.
func (in *inspector) findFixups() {
	online := onlineCPUs()
	for _, t := range in.tasks {
		if t.zombie() {
			continue
		}
		ksm := t.merges || mergesAll(t.dir)
		for _, th := range t.threads {
			f := Fixup{TID: th.nsTID, HostTID: th.tid, KSM: ksm && th.tid == t.PID}
			if mask, err := affinity(th.tid); err == nil && !covers(mask, online) {
				f.Affinity = mask
			}
			if b, err := readFile(filepath.Join(in.dir(th.tid), "timerslack_ns")); err == nil {
				// Real-time threads have no slack; the kernel answers 0.
				if ns, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && ns != 0 && ns != defaultSlack {
					f.TimerSlackNS = ns
				}
			}
			if p, err := ioprio(th.tid); err == nil && p>>ioprioClassBits != 0 {
				f.IOPrio = p
			}
			if f.Affinity != nil || f.TimerSlackNS != 0 || f.IOPrio != 0 || f.KSM {
				in.rep.Want.Fixups = append(in.rep.Want.Fixups, f)
			}
		}
	}
	if n := len(in.rep.Want.Fixups); n > 0 {
		in.add(Finding{"fixups", Info, in.opt.PID, fmt.Sprintf("%d threads have an affinity, timer slack, I/O priority or KSM of their own", n), "CRIU loses them", "they are applied again at the target"})
	}
}

// affinity is a thread's CPU mask, trailing zero words cut.
func affinity(tid int) ([]uint64, error) {
	var set [128]uint64 // 8,192 CPUs, the kernel's maximum
	n, err := schedGetaffinity(tid, set[:])
	if err != nil {
		return nil, err
	}
	words := set[:n/8]
	for len(words) > 0 && words[len(words)-1] == 0 {
		words = words[:len(words)-1]
	}
	return slices.Clone(words), nil
}

// covers says that a mask has all CPUs that are online: nobody restricted it.
func covers(mask, online []uint64) bool {
	for i, w := range online {
		if i >= len(mask) {
			if w != 0 {
				return false
			}
			continue
		}
		if w&^mask[i] != 0 {
			return false
		}
	}
	return true
}

func onlineCPUs() []uint64 {
	b, err := readFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil
	}
	mask, _ := parseCPUList(strings.TrimSpace(string(b)))
	return mask
}

// parseCPUList reads "0-3,8".
func parseCPUList(s string) ([]uint64, error) {
	var mask []uint64
	for part := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		lo, err1 := strconv.Atoi(a)
		hi, err2 := strconv.Atoi(b)
		if err1 != nil || err2 != nil || lo < 0 || hi < lo || hi >= 8192 {
			return nil, errors.New("parse CPU list " + strconv.Quote(s))
		}
		for c := lo; c <= hi; c++ {
			for len(mask) <= c/64 {
				mask = append(mask, 0)
			}
			mask[c/64] |= 1 << (c % 64)
		}
	}
	return mask, nil
}

func ioprio(tid int) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProc, uintptr(tid), 0)
	if errno != 0 {
		return 0, fmt.Errorf("get I/O priority of %d: %w", tid, errno)
	}
	return int(r), nil
}

// mergesAll says that the process asked for KSM on all of its memory (PR_SET_MEMORY_MERGE). Linux tells since 6.15; before, the probe does.
func mergesAll(dir string) bool {
	b, err := readFile(filepath.Join(dir, "ksm_stat"))
	return err == nil && keyed(b)[ksmMergeAny] == "yes"
}
