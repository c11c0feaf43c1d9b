package preflight

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// checkTTYs: a terminal whose master is in the tree moves with it (tmux, expect). Another one can only be redirected,
// and only where it is nothing but standard input, output and error.
func (in *inspector) checkTTYs(out *outside) {
	masters := map[int]bool{}
	for _, t := range in.tasks {
		for _, d := range t.fds {
			if n, err := strconv.Atoi(d.info["tty-index"]); err == nil && d.kind == kindMaster {
				masters[n] = true
			}
		}
	}
	for _, t := range in.tasks {
		for _, d := range t.fds {
			if d.kind != kindTTY || d.flags&unix.O_PATH != 0 {
				continue
			}
			n, pts := ptsIndex(d.st.Rdev)
			if pts && masters[n] {
				continue
			}
			peer := ""
			if ms := out.masters[n]; pts && len(ms) > 0 {
				peer = in.who(ms[0].pid)
			}
			if d.fd <= 2 {
				in.rep.Want.ShellJob = true
				in.addStdio(t, d, peer)
				continue
			}
			in.add(Finding{
				"tty", Refuse, t.PID, fmt.Sprintf("descriptor %d of %s is the terminal %s, whose other side (%s) stays", d.fd, t.Comm, d.link, orUnknown(peer)),
				"only standard input, output and error can be redirected", "start it without a terminal (setsid, nohup), or inside tmux and migrate that",
			})
		}
		if n, pts := ptsIndex(devOfTTY(t.stat.tty)); t.stat.tty != 0 && (!pts || !masters[n]) {
			in.rep.Want.ShellJob = true
			in.add(Finding{
				"controlling-tty", Info, t.PID, fmt.Sprintf("%s has a controlling terminal that stays", t.Comm),
				"at the target it has none: no SIGHUP, no job control", "--shell-job is set",
			})
		}
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// ptsIndex is N of /dev/pts/N. Its majors are 136 to 143, 2^20 minors each count through.
func ptsIndex(rdev uint64) (int, bool) {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	if major < 136 || major > 143 {
		return 0, false
	}
	return int(minor), true
}

// devOfTTY turns stat's tty_nr (minor bits 31–20 and 7–0, major 15–8) into a device number.
func devOfTTY(nr int) uint64 {
	u := uint32(nr)
	return unix.Mkdev(u>>8&0xfff, u&0xff|u>>12&0xfff00)
}
