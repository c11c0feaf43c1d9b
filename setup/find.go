package setup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Least is the first version of CRIU whose images and behaviour lazymig knows.
const Least = "4.2"

// ErrNoCRIU says that no CRIU that is new enough was found.
var ErrNoCRIU = errors.New("no CRIU ≥ 4.2 found (lazymig setup installs one)")

// Find returns a CRIU that is new enough: explicit if not empty (then only
// that), else LAZYMIG_CRIU (then only that), else the caches where [Run]
// installs it, else PATH.
func Find(explicit string) (string, error) {
	if explicit == "" {
		explicit = os.Getenv("LAZYMIG_CRIU")
	}
	if explicit != "" {
		return explicit, checkVersion(explicit)
	}
	for _, dir := range cacheDirs() {
		p := Prefix(dir).Criu()
		if _, err := os.Stat(p); err == nil && checkVersion(p) == nil {
			return p, nil
		}
	}
	if p, err := exec.LookPath("criu"); err == nil && checkVersion(p) == nil {
		return p, nil
	}
	return "", ErrNoCRIU
}

// DefaultCacheDir is where [Run] puts the prefix: LAZYMIG_CACHE/criu, the
// project's own .cache/criu when the executable or the working directory lies
// in a checkout, else /var/lib/lazymig/criu.
func DefaultCacheDir() string { return cacheDirs()[0] }

func cacheDirs() []string {
	var dirs []string
	if d := os.Getenv("LAZYMIG_CACHE"); d != "" {
		dirs = append(dirs, filepath.Join(d, "criu"))
	}
	if exe, err := os.Executable(); err == nil {
		if root := checkout(filepath.Dir(exe)); root != "" {
			dirs = append(dirs, filepath.Join(root, ".cache", "criu"))
		}
	}
	if wd, err := os.Getwd(); err == nil {
		if root := checkout(wd); root != "" {
			dirs = append(dirs, filepath.Join(root, ".cache", "criu"))
		}
	}
	return append(dirs, "/var/lib/lazymig/criu")
}

// checkout returns the root of the source tree that dir lies in, or "". The
// tree must belong to this user or to root: what lies in its cache is run.
func checkout(dir string) string {
	for d := dir; ; d = filepath.Dir(d) {
		b, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.Contains(string(b), "module github.com/lazymig/lazymig") && ownedByUs(d) {
			return d
		}
		// bin/ alone, without sources, still names its project's cache (lab hosts).
		if filepath.Base(d) == "bin" && ownedByUs(filepath.Dir(d)) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(d), ".cache", "criu")); err == nil {
				return filepath.Dir(d)
			}
		}
		if d == filepath.Dir(d) {
			return ""
		}
	}
}

// Version asks a CRIU for its version, such as "4.2.1".
func Version(criu string) (string, error) {
	out, err := exec.Command(criu, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("run %s --version: %w", criu, err)
	}
	return parseVersion(string(out))
}

// parseVersion reads "Version: 4.2.1" (and what stands below it).
func parseVersion(out string) (string, error) {
	for l := range strings.Lines(out) {
		v, ok := strings.CutPrefix(strings.TrimSpace(l), "Version:")
		if !ok {
			continue
		}
		v = strings.TrimSpace(v)
		for i, part := range strings.Split(v, ".") {
			if _, err := strconv.Atoi(part); err != nil && i < 2 {
				return "", fmt.Errorf("parse CRIU version %q: %w", v, err)
			}
		}
		return v, nil
	}
	return "", fmt.Errorf("parse CRIU version: no version in %q", out)
}

// NewEnough says whether a version is Least or later.
func NewEnough(version string) bool {
	number := func(v string) (major, minor int) {
		_, _ = fmt.Sscanf(v, "%d.%d", &major, &minor) // what is not there is 0
		return major, minor
	}
	major, minor := number(version)
	leastMajor, leastMinor := number(Least)
	return major > leastMajor || major == leastMajor && minor >= leastMinor
}

func checkVersion(criu string) error {
	v, err := Version(criu)
	if err != nil {
		return err
	}
	if !NewEnough(v) {
		return fmt.Errorf("%s is version %s: %w", criu, v, ErrNoCRIU)
	}
	return nil
}

// Prefix is a directory that holds an unpacked CRIU with all its libraries.
type Prefix string

// Criu is the program.
func (p Prefix) Criu() string { return filepath.Join(string(p), "usr/sbin/criu") }

// Loader is the dynamic loader that belongs to it.
func (p Prefix) Loader() string { return filepath.Join(p.Libs(), "ld-linux-x86-64.so.2") }

// Libs is the directory of its libraries.
func (p Prefix) Libs() string { return filepath.Join(string(p), "usr/lib/x86_64-linux-gnu") }

// Argv starts criu wherever the prefix is mounted or reached, by its own
// loader: the path of the loader inside criu's file need not exist.
func (p Prefix) Argv(args ...string) []string {
	return append([]string{p.Loader(), "--library-path", p.Libs(), p.Criu()}, args...)
}

// PrefixOf returns the prefix that a criu path belongs to; ok is false for the
// distribution's own.
func PrefixOf(criu string) (p Prefix, ok bool) {
	dir, found := strings.CutSuffix(filepath.Clean(criu), "/usr/sbin/criu")
	if !found || dir == "" {
		return "", false
	}
	p = Prefix(dir)
	_, err := os.Stat(p.Loader())
	return p, err == nil
}
