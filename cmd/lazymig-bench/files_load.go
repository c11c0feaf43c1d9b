package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The programs that use files. Each tells how long it took and a checksum of what it has seen, which is the same everywhere.

const (
	loadArg = "files-load"
	loadDir = "/srv/bench" // of A

	bigSize   = 64 << 20
	treeDirs  = 40
	treeFiles = 25 // in each
	preads    = 128
	appends   = 50
)

type loadResult struct {
	Seconds float64
	Sum     uint32
}

// fileLoads in the order of the table. perform gets the directory that is A's root; unit is what its figure counts, how many.
var fileLoads = []struct {
	name, title, unit string
	count             float64 // of units; the figure is units a second, or with less set, time for one
	less              bool    // less is better
	perform           func(root string) (uint32, error)
	chroots           bool   // it is a program whose root that is
	uses              string // below loadDir
}{
	{"sequential", "sequential read of 64 MB", "MB/s", bigSize / 1e6, false, readThrough, false, "big"},
	{"random", "random read of 4 KB", "µs", preads / 1e6, true, readRandom, false, "random"},
	{"stat", "stat of 1,000 files in 40 directories", "µs", treeDirs * treeFiles / 1e6, true, statAll, false, "tree"},
	{"walk", "find -size over them", "ms", 1e-3, true, walk, false, "tree"},
	{"append", "append of 4 KB and fsync", "µs", appends / 1e6, true, appendSync, false, "log"},
	{"write", "write of 16 MB in pieces of 64 KB, close", "MB/s", 16 << 20 / 1e6, false, writeThrough, false, "out"},
	{"python", "python3 -c 'import asyncio, json, sqlite3'", "ms", 1e-3, true, inRoot("/usr/bin/python3", "-c", "import asyncio, json, sqlite3"), true, "log"},
	{"git", "git status of 1,000 files", "ms", 1e-3, true, inRoot("/usr/bin/git", "-C", loadDir+"/repo", "status", "--porcelain"), true, "repo"},
}

func runLoad(args []string) error {
	var r loadResult
	var err error
	if args[0] == "prepare" {
		err = prepareFiles(loadDir)
	} else {
		i := indexLoad(args[0])
		if i < 0 || len(args) != 2 {
			return fmt.Errorf("no load %q", args)
		}
		began := time.Now()
		r.Sum, err = fileLoads[i].perform(args[1])
		r.Seconds = time.Since(began).Seconds()
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func indexLoad(name string) int {
	for i := range fileLoads {
		if fileLoads[i].name == name {
			return i
		}
	}
	return -1
}

func treeFile(dir, file int) string { return fmt.Sprintf("d%02d/file%02d.c", dir, file) }

// prepareFiles makes what the loads use.
func prepareFiles(dir string) error {
	r := rand.NewChaCha8([32]byte{4})
	b := make([]byte, bigSize)
	for _, name := range []string{"big", "random"} {
		_, _ = r.Read(b) // never fails
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name), b, 0o644)); err != nil {
			return err
		}
	}
	for _, tree := range []string{"tree", "repo"} {
		for d := range treeDirs {
			for f := range treeFiles {
				p := filepath.Join(dir, tree, treeFile(d, f))
				if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b[:100+37*f+d], 0o644)); err != nil {
					return err
				}
			}
		}
	}
	for _, args := range [][]string{
		{"init", "-q"}, {"add", "."}, {"-c", "user.name=b", "-c", "user.email=b@b", "commit", "-q", "-m", "all"}, {"status"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", filepath.Join(dir, "repo")}, args...)...).CombinedOutput(); err != nil {
			return said("git "+args[0], err, out)
		}
	}
	unix.Sync()
	return nil
}

func readThrough(root string) (uint32, error) {
	f, err := os.Open(root + loadDir + "/big")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, 128<<10))
	return h.Sum32(), err
}

func readRandom(root string) (uint32, error) {
	f, err := os.Open(root + loadDir + "/random")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, h, b := rand.New(rand.NewPCG(1, 2)), crc32.NewIEEE(), make([]byte, 4096)
	for range preads {
		if _, err := f.ReadAt(b, int64(r.IntN(bigSize/4096))*4096); err != nil {
			return 0, err
		}
		_, _ = h.Write(b)
	}
	return h.Sum32(), nil
}

func statAll(root string) (uint32, error) {
	h := crc32.NewIEEE()
	for d := range treeDirs {
		for f := range treeFiles {
			fi, err := os.Lstat(filepath.Join(root+loadDir, "tree", treeFile(d, f)))
			if err != nil {
				return 0, err
			}
			fmt.Fprintln(h, fi.Name(), fi.Size(), fi.Mode(), fi.ModTime().Unix())
		}
	}
	return h.Sum32(), nil
}

func walk(root string) (uint32, error) {
	h := crc32.NewIEEE()
	err := filepath.WalkDir(root+loadDir+"/tree", func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err == nil && !fi.IsDir() {
			fmt.Fprintln(h, fi.Name(), fi.Size())
		}
		return err
	})
	return h.Sum32(), err
}

func appendSync(root string) (uint32, error) {
	f, err := os.OpenFile(root+loadDir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 4096)
	for range appends {
		if _, err := f.Write(b); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func writeThrough(root string) (uint32, error) {
	f, err := os.OpenFile(root+loadDir+"/out", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	b := make([]byte, 64<<10)
	for range (16 << 20) / len(b) {
		if _, err := f.Write(b); err != nil {
			_ = f.Close() // the error is told
			return 0, err
		}
	}
	return 0, f.Close()
}

// inRoot runs a program whose root A's files are.
func inRoot(name string, args ...string) func(string) (uint32, error) {
	return func(root string) (uint32, error) {
		cmd := exec.Command(name, args...)
		cmd.Path, cmd.Dir = name, "/"
		cmd.Env = []string{
			"PATH=/usr/bin:/bin", "HOME=/root", "PYTHONDONTWRITEBYTECODE=1", "GIT_OPTIONAL_LOCKS=0", "GIT_CONFIG_COUNT=1",
			"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, said(name, err, out)
		}
		return crc32.ChecksumIEEE(out), nil
	}
}
