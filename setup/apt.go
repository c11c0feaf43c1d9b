package setup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// installPackages installs what dpkg does not know as installed.
func installPackages(ctx context.Context, o Options, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install %s: this host has no apt-get, install them by hand: %w", strings.Join(names, " "), err)
	}
	var missing []string
	for _, n := range names {
		out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${db:Status-Status}", n).Output()
		if err != nil || string(out) != "installed" {
			missing = append(missing, n)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintf(o.Out, "packages: installing %s\n", strings.Join(missing, " "))
	// DPkg::Lock::Timeout waits for another apt instead of failing.
	install := append([]string{"-oDPkg::Lock::Timeout=300", "install", "-y", "--no-install-recommends"}, missing...)
	_, err := run(ctx, o, "apt-get", install...)
	if err == nil {
		return nil
	}
	// The lists may be missing or old.
	if _, uerr := run(ctx, o, "apt-get", "-oDPkg::Lock::Timeout=300", "update"); uerr != nil {
		return errors.Join(err, uerr)
	}
	_, err = run(ctx, o, "apt-get", install...)
	return err
}

// download fetches the packages of criu and all that it depends on into dir,
// with an apt that knows nothing of this machine and changes nothing on it.
func download(ctx context.Context, o Options, dir string) ([]string, error) {
	src := source{uri: o.Mirror}
	if src.uri == "" {
		var err error
		if src, err = machineSource("/etc/apt"); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make apt folder: %w", err)
		}
	}
	list := filepath.Join(dir, "sources.list")
	files := map[string]string{
		list:                          "deb " + src.options() + src.uri + " " + o.Suite + " main\n",
		filepath.Join(dir, "status"):  "",
		filepath.Join(dir, "prefers"): "",
	}
	for p, text := range files {
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("write apt's files: %w", err)
		}
	}
	private := []string{
		"-oDir::Etc::SourceList=" + list,
		"-oDir::Etc::SourceParts=/dev/null",
		"-oDir::Etc::Preferences=" + filepath.Join(dir, "prefers"),
		"-oDir::Etc::PreferencesParts=/dev/null",
		"-oDir::State::Lists=" + filepath.Join(dir, "lists"),
		"-oDir::State::status=" + filepath.Join(dir, "status"),
		"-oDir::Cache=" + filepath.Join(dir, "cache"),
		"-oDir::Cache::archives=archives",
		"-oAPT::Sandbox::User=root", // the build folder is not _apt's
		"-oAPT::Get::List-Cleanup=false",
		"-oAcquire::Languages=none",
		"-oAcquire::Retries=3",
		"-oAPT::Update::Error-Mode=any",
	}
	if _, err := run(ctx, o, "apt-get", append(private, "update")...); err != nil {
		return nil, err
	}
	get := append(private, "install", "--no-install-recommends", "--download-only", "-y", "criu")
	if _, err := run(ctx, o, "apt-get", get...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "cache/archives/*.deb"))
	if err != nil {
		return nil, fmt.Errorf("list packages: %w", err)
	}
	if len(debs) == 0 {
		return nil, fmt.Errorf("download criu: apt fetched no package")
	}
	return debs, nil
}

// unpack puts all packages into one directory; no script of theirs runs.
func unpack(ctx context.Context, o Options, debs []string, root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("make prefix: %w", err)
	}
	for _, d := range debs {
		if _, err := run(ctx, o, "dpkg-deb", "-x", d, root); err != nil {
			return err
		}
	}
	return nil
}

// relocate makes criu, unpacked in root, run by itself once root is renamed to
// final. The libraries are found relative to their own place. The loader and
// the C library are left alone: they find each other, and patchelf breaks them.
func relocate(ctx context.Context, o Options, root, final string) error {
	p := Prefix(root)
	_, err := run(ctx, o, "patchelf", "--set-interpreter", Prefix(final).Loader(),
		"--set-rpath", "$ORIGIN/../lib/x86_64-linux-gnu", p.Criu())
	if err != nil {
		return err
	}
	libs, err := filepath.Glob(filepath.Join(p.Libs(), "*.so*"))
	if err != nil {
		return fmt.Errorf("list libraries: %w", err)
	}
	for _, l := range libs {
		fi, err := os.Lstat(l)
		if err != nil {
			return fmt.Errorf("look at library: %w", err)
		}
		if !fi.Mode().IsRegular() || isLibc(filepath.Base(l)) {
			continue
		}
		if _, err := run(ctx, o, "patchelf", "--set-rpath", "$ORIGIN", l); err != nil {
			return err
		}
	}
	return nil
}

// isLibc tells glibc's own libraries, by the names in Debian's libc6.
func isLibc(name string) bool {
	base, _, _ := strings.Cut(name, ".so")
	switch base {
	case "ld-linux-x86-64", "libc", "libm", "libmvec", "libpthread", "libdl", "librt", "libutil", "libanl",
		"libresolv", "libnsl", "libBrokenLocale", "libthread_db", "libc_malloc_debug", "libmemusage", "libpcprofile":
		return true
	}
	return strings.HasPrefix(base, "libnss_")
}
