package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestDetachRotate detaches a log writer whose log is renamed and opened anew all the time, by another process.
func TestDetachRotate(t *testing.T) {
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/usr/bin/python3", r.script("rotate.py"), "/srv/log")
	r.says(a, "log to be rotated", "test -e /srv/log/log.000003 && echo yes", "yes")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	before := r.sh(b, "ls "+root+"/srv/log | wc -l")
	r.eventually("log to be rotated on B", func() bool { return r.sh(b, "ls "+root+"/srv/log | wc -l") != before })
	r.sh(b, fmt.Sprintf("kill -TERM %d", pid))
	r.says(b, "verdict", "cat "+root+"/srv/log/verdict", "OK")
	r.over(b)
}

// TestDetachFiles detaches a python3 with forty open files at work, which is then started again by its own script.
func TestDetachFiles(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	script := r.script("files.py")
	r.sh(a, "mkdir /srv/bin; cp "+script+" /srv/bin")
	p := r.spawn(a, "/usr/bin/python3", "/srv/bin/files.py", "/srv/app")
	r.says(a, "python3 to be ready", "cat /srv/app/verdict", "ready")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	r.alone(b, pid)
	app := root + "/srv/app"
	ask := func(pid, word string) string {
		var out string
		r.sh(b, "echo asked > "+app+"/verdict; kill -USR1 "+pid)
		r.eventually("verdict", func() bool { out = r.sh(b, "cat "+app+"/verdict"); return out != "asked" })
		if !strings.HasPrefix(out, word) {
			t.Fatalf("python3 says: %s", out)
		}
		return out
	}
	first := ask(fmt.Sprint(pid), "OK")
	r.eventually("files to be worked on", func() bool { return ask(fmt.Sprint(pid), "OK") != first })
	// Its own script, which it starts itself, ends it and starts it anew, from its files on B.
	r.sh(b, fmt.Sprintf("kill -USR2 %d", pid))
	r.says(b, "python3 to be started again", "cat "+app+"/verdict", "again")
	r.says(b, "it to run once", "cat "+app+"/starts | wc -l", "2")
	again := r.sh(b, "for p in /proc/[0-9]*; do if test \"$(tr '\\0' ' ' <$p/cmdline)\" = '/usr/bin/python3 /srv/bin/files.py /srv/app '; then basename $p; fi; done")
	ask(again, "OK")
	r.sh(b, "kill -KILL "+again)
	r.over(b)
}

// TestDetachConnected detaches a server and its client, which are connected by a named socket all the time. What is left of FUSE in the kernel goes with that connection.
func TestDetachConnected(t *testing.T) {
	kerneltest.NeedProgram(t, "/usr/bin/python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	script := r.script("talk.py")
	r.sh(a, "mkdir /srv/bin; cp "+script+" /srv/bin")
	p := r.spawn(a, "/usr/bin/python3", "/srv/bin/talk.py", "/srv/app")
	r.says(a, "python3 to be ready", "cat /srv/app/verdict", "ready")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	app := root + "/srv/app"
	ask := func(signal, word string) string {
		var out string
		r.sh(b, fmt.Sprintf("echo asked > %s/verdict; kill -%s %d", app, signal, pid))
		r.eventually("verdict", func() bool { out = r.sh(b, "cat "+app+"/verdict"); return out != "asked" })
		if !strings.HasPrefix(out, word) {
			t.Fatalf("python3 says: %s", out)
		}
		return out
	}
	first := ask("USR1", "OK")
	r.eventually("numbers to be added up", func() bool { return ask("USR1", "OK") != first })
	ask("USR2", "over")
	ask("USR1", "OK")
	r.alone(b, pid)
	r.sh(b, fmt.Sprintf("pkill -KILL -P %d; kill -KILL %d", pid, pid))
	r.over(b)
}

// TestDetachMake detaches a `make -j2` of a C project in the middle, where it starts compilers all the time; what it makes is what is made at home.
func TestDetachMake(t *testing.T) {
	kerneltest.NeedProgram(t, "make")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	// f08 and f09 are compiled again and again until the file "go" is there: so half is made, and both jobs are at work.
	r.sh(a, `mkdir -p /srv/home /srv/tmp && cd /srv/home
for i in 01 02 03 04 05 06 07 08 09 10 11 12 13 14 15 16; do
	printf '#include <stdio.h>\n#include "all.h"\nint f%s(int x) { char b[64]; snprintf(b, sizeof b, "%%d", x * SEED); int s = 0; for (char *p = b; *p; p++) s = s * 31 + *p; return s; }\n' $i >f$i.c
	echo "int f$i(int);" >>all.h.new; echo "	x = f$i(x);" >>body
done
{ echo '#define SEED 7'; cat all.h.new; } >all.h
{ printf '#include <stdio.h>\n#include "all.h"\nint main(void) {\n\tint x = 1;\n'; cat body; printf '\tprintf("%%d\\n", x);\n}\n'; } >main.c
cat >Makefile <<'END'
OBJ = $(patsubst %.c,%.o,$(sort $(wildcard f*.c))) main.o
prog: $(OBJ) ; gcc -o $@ $(OBJ) && ./prog >out
%.o: %.c all.h ; gcc -O2 -Wall -c -o $@.new $< && mv $@.new $@
f08.o f09.o: %.o: %.c all.h ; n=0; until gcc -O2 -Wall -c -o $@.new $< && test -e go; do n=$$((n + 1)); echo $$n >$@.tries; done; mv $@.new $@
END
cp -a /srv/home /srv/proj; touch go && TMPDIR=/srv/tmp make -s -j2`)
	p := r.spawn(a, "/bin/sh", "-c", "cd /srv/proj && export TMPDIR=/srv/tmp && make -j2 >make.out 2>&1 </dev/null; echo $? >status.new; mv status.new status; exec sleep 1000")
	r.says(a, "half to be made", "cd /srv/proj; test -s f08.o.tries -a -s f09.o.tries; ls f*.o | wc -l", "7")
	pid, root := r.detach(a, b, p.Pid, r.locals(a, b)...)
	r.strand(b)
	proj := root + "/srv/proj"
	tries := r.sh(b, "cat "+proj+"/f08.o.tries")
	r.eventually("compilers to run on B", func() bool { return r.sh(b, "cat "+proj+"/f08.o.tries") != tries })
	if n := r.sh(b, "ls "+proj+"/f*.o | wc -l"); n != "7" {
		t.Errorf("%s objects are made before the rest may be", n)
	}
	r.sh(b, "touch "+proj+"/go")
	r.says(b, "make to end", "cat "+proj+"/status", "0")
	r.alone(b, pid)
	sums := "for f in *.o prog out; do sha256sum $f; done"
	if home, moved := r.sh(a, "cd /srv/home && "+sums), r.sh(b, "cd "+proj+" && "+sums); home != moved {
		t.Errorf("made at home:\n%s\nmade where it moved:\n%s\n%s", home, moved, r.sh(b, "cat "+proj+"/make.out"))
	}
	r.end(b, pid, "KILL")
	r.over(b)
}
