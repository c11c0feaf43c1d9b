package kerneltest

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// runTop returns the cgroup that [Main] made for this run, or "".
func runTop() (string, error) {
	if !isolated() {
		return "", nil
	}
	root, err := cgroup2Mount()
	if err != nil {
		return "", nil // no cgroup v2: nothing can be left there
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		own, v2 := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if top, run := strings.CutSuffix(own, "/"+runCgroup); v2 && run {
			return filepath.Join(root, top), nil
		}
	}
	return "", nil
}

// cgroups finds all cgroups in that of this run. Without one nobody can tell whose they are.
func cgroups() (map[string]string, error) {
	seen := map[string]string{}
	top, err := runTop()
	if err != nil || top == "" {
		return seen, err
	}
	for _, d := range below(top) {
		seen[d] = d
	}
	return seen, nil
}

// below lists a cgroup and those in it, parents first.
func below(top string) (dirs []string) {
	_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() { // else it goes away while we look
			dirs = append(dirs, p)
		}
		return nil
	})
	return dirs
}

// removeCgroup kills what is in a cgroup and removes it with all below.
func removeCgroup(top string) {
	poll(leakPatience, func() bool {
		_ = os.WriteFile(filepath.Join(top, "cgroup.freeze"), []byte("0"), 0)
		_ = os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0)
		for _, d := range slices.Backward(below(top)) {
			_ = os.Remove(d)
		}
		_, err := os.Stat(top)
		return err != nil
	})
}

// inRun lists the processes in this run's cgroup: also those whose parents are gone.
func inRun() (map[string]bool, error) {
	pids := map[string]bool{}
	top, err := runTop()
	if err != nil || top == "" {
		return pids, err
	}
	for _, d := range below(top) {
		b, _ := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		for pid := range strings.FieldsSeq(string(b)) {
			pids[pid] = true
		}
	}
	return pids, nil
}
