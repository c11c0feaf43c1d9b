package sqlite

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

func TestMain(m *testing.M) { kerneltest.Main(m) }

// user is a python3 that uses SQLite, line by line.
type user struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

const program = `import sqlite3, sys
def connect(p, **k): return sqlite3.connect(p, isolation_level=None, timeout=0, **k)
while True:
    line = sys.stdin.readline()
    if not line: break
    try: exec(line); print("OK", flush=True)
    except Exception as e: print(e, flush=True)`

func start(t *testing.T) *user {
	t.Helper()
	kerneltest.NeedRoot(t)
	u := &user{t: t, cmd: exec.Command(kerneltest.NeedProgram(t, "/usr/bin/python3"), "-c", program)}
	var err error
	if u.in, err = u.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	u.out = bufio.NewReader(out)
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill()
		_ = u.cmd.Wait() // killed
	})
	return u
}

// do runs a line and returns what it says.
func (u *user) do(format string, args ...any) string {
	u.t.Helper()
	if _, err := fmt.Fprintf(u.in, format+"\n", args...); err != nil {
		u.t.Fatal(err)
	}
	line, err := u.out.ReadString('\n')
	if err != nil {
		u.t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func (u *user) must(format string, args ...any) {
	u.t.Helper()
	if got := u.do(format, args...); got != "OK" {
		u.t.Fatalf(format+": %s", append(args, got)...)
	}
}

func (u *user) find() *Found {
	u.t.Helper()
	dbs, err := Databases(u.cmd.Process.Pid)
	if err != nil {
		u.t.Fatal(err)
	}
	f, err := Search(u.cmd.Process.Pid, dbs)
	if err != nil {
		u.t.Fatal(err)
	}
	return f
}

// elsewhere gives a file and its descriptors in the process other numbers, as a move does: a copy takes its place.
func (u *user) elsewhere(path string) (dev, ino uint64) {
	u.t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path+".copy", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".copy", path)
	}
	if err != nil {
		u.t.Fatal(err)
	}
	u.must("import os")
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", u.cmd.Process.Pid))
	for _, l := range links {
		if to, _ := os.Readlink(l); to == path+" (deleted)" {
			u.must("x = os.open(%q, os.O_RDWR); os.dup2(x, %s, False); os.close(x)", path, filepath.Base(l))
		}
	}
	dev, ino, _, _ = Numbers(path)
	return dev, ino
}

// A process whose database gets other numbers writes on, and its old and new connections know of each other, if the record gets them, too; and not if it does not.
func TestRecord(t *testing.T) {
	for _, mode := range []string{"DELETE", "WAL"} {
		for _, put := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", mode, put), func(t *testing.T) {
				db := filepath.Join(t.TempDir(), "db")
				u := start(t)
				u.must("a = connect(%q); a.execute('PRAGMA journal_mode=%s'); a.execute('CREATE TABLE t (x)'); c = connect(%q); c.execute('SELECT * FROM t')", db, mode, db)
				u.must("other = connect(%q); other.execute('CREATE TABLE t (x)')", db+".other")
				f := u.find()
				if len(f.Databases) != 3 || len(f.Records) != 2 || len(f.Unknown) != 0 {
					t.Fatalf("found %+v", f)
				}
				dev, ino := u.elsewhere(db)
				for _, r := range f.Records {
					if r.Ino == f.Databases[0].Ino && put {
						if err := r.Put(Memory(u.cmd.Process.Pid), dev, ino); err != nil {
							t.Fatal(err)
						}
					}
				}
				if f.Holds(u.cmd.Process.Pid) == put {
					t.Errorf("holds: %v", !put)
				}
				u.must("a.execute('BEGIN IMMEDIATE'); b = connect(%q)", db)
				if got := u.do("b.execute('BEGIN IMMEDIATE')"); (got == "database is locked") != put {
					t.Errorf("a new connection, while an old one writes: %s", got)
				}
				u.must("b.close()")
				want := "OK"
				if mode == "DELETE" && !put {
					want = "attempt to write a readonly database"
				}
				if got := u.do("a.execute('INSERT INTO t VALUES (1)'); a.execute('COMMIT')"); got != want {
					t.Errorf("an old connection: %s, want %s", got, want)
				}
			})
		}
	}
}

// What is no database, and a database that somebody else than SQLite has open.
func TestUnknown(t *testing.T) {
	dir := t.TempDir()
	u := start(t)
	u.must("a = connect(%q); a.execute('CREATE TABLE t (x)'); a.close()", dir+"/db")
	u.must("f = open(%q, 'w+'); f.write('no database at all'); f.flush(); r = open(%q, 'rb'); w = open(%q, 'r+b')", dir+"/text", dir+"/db", dir+"/db")
	f := u.find()
	if len(f.Databases) != 2 || len(f.Records) != 0 || len(f.Unknown) != 1 || !f.Unknown[0].Writable || f.Unknown[0].Path != dir+"/db" {
		t.Fatalf("found %+v", f)
	}
	u.must("a = connect(%q); a.execute('SELECT * FROM t')", dir+"/db")
	if f = u.find(); len(f.Databases) != 3 || len(f.Records) != 1 || len(f.Unknown) != 0 {
		t.Fatalf("found %+v", f)
	}
	u.must("a.close(); del a")
	if f.Holds(u.cmd.Process.Pid) {
		t.Error("holds although the connection is closed")
	}
}

const busySrc = `#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int argc, char **argv) {
	struct stat st;
	if (open(argv[1], O_RDWR) < 0) return 1;
	if (argc > 2 && stat(argv[1], &st)) return 1;
	puts("ready");
	fflush(stdout);
	if (argc > 3)
		for (;;) pause();
	for (volatile int n = 0;; n++);
	return st.st_ino != 0;
}`

// A thread that has just asked for the numbers is busy, unless it waits for something else.
func TestBusy(t *testing.T) {
	kerneltest.NeedRoot(t)
	db := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(db, []byte(Header+strings.Repeat("x", unit-len(Header))), 0o600); err != nil {
		t.Fatal(err)
	}
	prog := kerneltest.CompileC(t, busySrc)
	for _, c := range []struct {
		args []string
		want bool
	}{{[]string{db}, false}, {[]string{db, "stat"}, true}, {[]string{db, "stat", "pause"}, false}} {
		cmd := exec.Command(prog, c.args...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		kerneltest.Eventually(t, "program to stand", func() bool {
			nr := fmt.Sprintf("%d ", unix.SYS_PAUSE)
			if len(c.args) < 3 { // in its loop, if it is not stopped on its way there
				nr = "-1 "
				_ = cmd.Process.Signal(unix.SIGCONT)
				_ = cmd.Process.Signal(unix.SIGSTOP)
			}
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", cmd.Process.Pid))
			return strings.HasPrefix(string(b), nr)
		})
		dbs, err := Databases(cmd.Process.Pid)
		if err != nil || len(dbs) != 1 {
			t.Fatalf("databases: %+v, %v", dbs, err)
		}
		f := &Found{Databases: dbs}
		if busy, err := f.Busy(cmd.Process.Pid); err != nil || busy != c.want {
			t.Errorf("%v: busy %v, %v", c.args, busy, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
}
