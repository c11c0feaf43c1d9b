package preflight

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// gone says that a task or descriptor went away while it was looked at.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// maxProcFile bounds what is read of one file in /proc.
const maxProcFile = 256 << 20

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxProcFile))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// numbers lists the numeric names in a directory.
func numbers(dir string) ([]int, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	out := make([]int, 0, len(names))
	for _, n := range names {
		if v, err := strconv.Atoi(n); err == nil {
			out = append(out, v)
		}
	}
	return out, nil
}

// procStat holds the fields of /proc/PID/stat that are used here.
type procStat struct {
	comm                 string
	state                byte
	ppid, pgrp, sid, tty int
	flags                uint64
	start                uint64
	policy               int
}

const pfKthread = 0x00200000

// parseStat reads a stat line; comm may hold spaces and parentheses.
func parseStat(b []byte) (procStat, error) {
	var s procStat
	l, r := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if l < 0 || r < l {
		return s, errors.New("parse stat: no command name")
	}
	s.comm = string(b[l+1 : r])
	f := strings.Fields(string(b[r+1:]))
	if len(f) < 39 {
		return s, fmt.Errorf("parse stat: %d fields", len(f))
	}
	s.state = f[0][0]
	s.ppid, _ = strconv.Atoi(f[1])
	s.pgrp, _ = strconv.Atoi(f[2])
	s.sid, _ = strconv.Atoi(f[3])
	s.tty, _ = strconv.Atoi(f[4])
	s.flags, _ = strconv.ParseUint(f[6], 10, 64)
	s.start, _ = strconv.ParseUint(f[19], 10, 64)
	s.policy, _ = strconv.Atoi(f[38])
	return s, nil
}

func readStat(dir string) (procStat, error) {
	b, err := readFile(filepath.Join(dir, "stat"))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

// keyed splits "Key:\tvalue" lines.
func keyed(b []byte) map[string]string {
	m := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.TrimSpace(v)
		}
	}
	return m
}

func readStatus(dir string) (map[string]string, error) {
	b, err := readFile(filepath.Join(dir, "status"))
	if err != nil {
		return nil, err
	}
	return keyed(b), nil
}

// lastInt is the last number of a list such as NSpid.
func lastInt(s string) int {
	f := strings.Fields(s)
	if len(f) == 0 {
		return 0
	}
	v, _ := strconv.Atoi(f[len(f)-1])
	return v
}

// nthUint is a number of a list; status' ids are decimal, its masks hexadecimal.
func nthUint(s string, n, base int) uint64 {
	f := strings.Fields(s)
	if n >= len(f) {
		return 0
	}
	v, _ := strconv.ParseUint(f[n], base, 64)
	return v
}

// kib reads "123 kB" as bytes.
func kib(s string) uint64 { return nthUint(s, 0, 10) << 10 }

func groups(s string) []uint32 {
	var out []uint32
	for f := range strings.FieldsSeq(s) {
		if v, err := strconv.ParseUint(f, 10, 32); err == nil {
			out = append(out, uint32(v))
		}
	}
	return out
}

// between is what stands in the brackets of "pipe:[123]".
func between(s, before string) (uint64, bool) {
	rest, ok := strings.CutPrefix(s, before+":[")
	if !ok {
		return 0, false
	}
	rest, ok = strings.CutSuffix(rest, "]")
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(rest, 10, 64)
	return v, err == nil
}

// inodeKey identifies a file, a memory object or a pipe on this host.
type inodeKey struct{ dev, ino uint64 }

func keyOf(st *unix.Stat_t) inodeKey { return inodeKey{st.Dev, st.Ino} }
