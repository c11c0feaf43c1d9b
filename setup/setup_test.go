package setup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func TestMachineSource(t *testing.T) {
	const vendor = "deb https://vendor.invalid/apt stable main\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  source
		err   error
	}{
		{name: "one line", files: map[string]string{
			"sources.list": "# deb http://old.invalid/debian buster main\ndeb http://m.invalid/debian bookworm main contrib # ours\n",
		}, want: source{uri: "http://m.invalid/debian"}},
		{name: "vendor and security first", files: map[string]string{
			"sources.list":               vendor + "deb http://m.invalid/debian-security bookworm-security main\ndeb [arch=amd64 signed-by=/k.gpg] http://m.invalid/debian/ bookworm main\n",
			"sources.list.d/vendor.list": vendor,
		}, want: source{uri: "http://m.invalid/debian/", signedBy: "/k.gpg"}},
		{name: "deb822", files: map[string]string{
			"sources.list.d/a.sources": "Types: deb\nURIs: https://vendor.invalid/node\nSuites: nodistro\nComponents: main\n",
			"sources.list.d/debian.sources": "Types: deb\n# a comment\nURIs: http://m.invalid/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/d.gpg\n\n" +
				"Types: deb\nURIs: http://m.invalid/debian-security\nSuites: bookworm-security\nComponents: main\n",
		}, want: source{uri: "http://m.invalid/debian", signedBy: "/usr/share/keyrings/d.gpg"}},
		{name: "disabled", files: map[string]string{
			"sources.list.d/d.sources": "Enabled: no\nTypes: deb\nURIs: http://m.invalid/debian\nSuites: bookworm\nComponents: main\n",
		}, err: errNoMirror},
		{name: "none", err: errNoMirror},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				p := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := machineSource(dir)
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %+v, %v, want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	for in, want := range map[string]string{"Version: 4.2.1\nGitID: 0\n": "4.2.1", "Version: 3.17\n": "3.17", "Version: 5\n": "5"} {
		if v, err := parseVersion(in); err != nil || v != want {
			t.Errorf("%q: %q, %v", in, v, err)
		}
	}
	for v, want := range map[string]bool{"4.2": true, "4.2.1": true, "4.10": true, "5": true, "4.1.1": false, "3.17.1": false, "4": false, "": false} {
		if NewEnough(v) != want {
			t.Errorf("%q is new enough: %v", v, !want)
		}
	}
	for _, in := range []string{"", "hello\n", "Version: x.y\n", "Version: 4.y\n"} {
		if _, err := parseVersion(in); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

// fakeCRIU is a program that only answers --version: what is tested is which
// one is chosen, not criu.
func fakeCRIU(t *testing.T, path, version string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho Version: "+version+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFindOrder(t *testing.T) {
	dir := t.TempDir()
	old := fakeCRIU(t, filepath.Join(dir, "old/criu"), "3.17")
	explicit := fakeCRIU(t, filepath.Join(dir, "explicit/criu"), "4.2")
	cached := fakeCRIU(t, Prefix(filepath.Join(dir, "cache/criu")).Criu(), "4.2.1")

	if got, err := Find(explicit); err != nil || got != explicit {
		t.Errorf("explicit: %q, %v", got, err)
	}
	if _, err := Find(old); !errors.Is(err, ErrNoCRIU) {
		t.Errorf("an explicit CRIU that is too old: %v", err)
	}
	t.Setenv("LAZYMIG_CACHE", filepath.Join(dir, "cache"))
	if got, err := Find(""); err != nil || got != cached {
		t.Errorf("cache: %q, %v", got, err)
	}
	t.Setenv("LAZYMIG_CRIU", explicit)
	if got, err := Find(""); err != nil || got != explicit {
		t.Errorf("environment: %q, %v", got, err)
	}
}

// installed returns a real prefix, as make test has installed it.
func installed(t *testing.T) Prefix {
	t.Helper()
	criu, err := Find("")
	if err == nil {
		if p, ok := PrefixOf(criu); ok {
			return p
		}
		err = errors.New("the distribution's own is in use")
	}
	if os.Getenv("LAZYMIG_NO_SKIP") == "1" && errors.Is(err, ErrNoCRIU) {
		t.Fatal(err)
	}
	t.Skip(err)
	return ""
}

// Inside a capsule the prefix has another path: criu must not care.
func TestPrefixByAnotherPath(t *testing.T) {
	p := installed(t)
	f, err := os.Open(string(p))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	link := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Symlink(string(p), link); err != nil {
		t.Fatal(err)
	}
	byFd := filepath.Join("/proc", strconv.Itoa(os.Getpid()), "fd", strconv.Itoa(int(f.Fd())))
	for _, q := range []Prefix{Prefix(link), Prefix(byFd)} {
		argv := q.Argv("--version")
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", q, err, out)
		}
		if _, err := parseVersion(string(out)); err != nil {
			t.Errorf("%s: %v", q, err)
		}
		// Nothing of the system's may be mixed in: every library that the loader
		// maps comes from the prefix.
		list, err := exec.Command(q.Loader(), "--library-path", q.Libs(), "--list", q.Criu()).CombinedOutput()
		if err != nil {
			t.Fatalf("list libraries: %v\n%s", err, list)
		}
		for l := range strings.Lines(string(list)) {
			if _, path, ok := strings.Cut(l, "=> "); ok && !strings.HasPrefix(path, string(q)) && !strings.HasPrefix(path, string(p)) {
				t.Errorf("%s: library from elsewhere: %s", q, l)
			}
		}
	}
}

func TestRunAgainDoesNothing(t *testing.T) {
	p := installed(t)
	before, err := os.Stat(p.Criu())
	if err != nil {
		t.Fatal(err)
	}
	// Two at once: the lock lets both through, one after the other.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			var out bytes.Buffer
			got, err := Run(context.Background(), Options{CacheDir: string(p), Mirror: "http://nowhere.invalid/debian", Out: &out})
			if err != nil || !strings.Contains(out.String(), got) {
				t.Errorf("run: %q, %v, printed %q", got, err, out.String())
			}
		})
	}
	wg.Wait()
	after, err := os.Stat(p.Criu())
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the second run installed again")
	}
}

// A prefix whose criu does not run is made again; if that fails, it says so
// and leaves no build folder.
func TestRunFailureLeavesNothing(t *testing.T) {
	if p, err := exec.LookPath("criu"); err == nil && checkVersion(p) == nil {
		t.Skip("the distribution's own is used here")
	}
	if _, err := exec.LookPath("patchelf"); err != nil {
		t.Skip("patchelf is not here, the run would install it") // make test installs it
	}
	dir := t.TempDir()
	fakeCRIU(t, Prefix(filepath.Join(dir, "criu")).Criu(), "3.17")
	_, err := Run(context.Background(), Options{CacheDir: filepath.Join(dir, "criu"), Mirror: "file:" + dir + "/no-mirror"})
	if err == nil {
		t.Fatal("a mirror that is not there gave no error")
	}
	left, err := filepath.Glob(filepath.Join(dir, "*build*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestLockHonoursContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := lock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("lock held by another: %v", err)
	}
	unlock()
	again, err := lock(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
