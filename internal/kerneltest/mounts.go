package kerneltest

import (
	"fmt"
	"os"
	"strings"
)

type mount struct {
	id, point, fstype, line string
}

// readMounts parses /proc/self/mountinfo (Documentation/filesystems/proc.rst).
func readMounts() ([]mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []mount
	for l := range strings.Lines(string(b)) {
		left, right, ok := strings.Cut(strings.TrimSpace(l), " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 6 || len(g) < 2 {
			return nil, fmt.Errorf("parse mountinfo: %q", l)
		}
		all = append(all, mount{id: f[0], point: unescape(f[4]), fstype: g[0], line: strings.TrimSpace(l)})
	}
	return all, nil
}

var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(s string) string { return octal.Replace(s) }

// mounts lists the mounts of a namespace of our own. In one that is shared with others nobody can tell whose they are.
func mounts() (map[string]string, error) {
	seen := map[string]string{}
	if !isolated() {
		return seen, nil
	}
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		seen[m.id+" "+m.point] = m.line
	}
	return seen, nil
}
