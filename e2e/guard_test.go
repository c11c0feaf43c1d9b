package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// TestGuardPages moves a process with guard pages (MADV_GUARD_INSTALL), in memory that was filled and in memory that was not: who touches
// one gets SIGSEGV on the target too, and what lies beside them is what it was.
func TestGuardPages(t *testing.T) {
	r := newRig(t)
	a, b := r.l.A, r.l.B
	py := filepath.Join(r.dir, "guards.py")
	if err := os.WriteFile(py, []byte(`import ctypes, os, signal, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
size, page = 8 << 20, 4096
full, empty = (libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0)) for _ in range(2))
ctypes.memset(full, 7, size)
guards = [full + 300 * page, full + 301 * page, full + 1500 * page, empty + 5 * page]
for g in guards:
    if libc.madvise(ctypes.c_void_p(g), ctypes.c_size_t(page), 102) != 0:
        open("/srv/state", "w").write("no guards")
        os._exit(0)
def touch(addr):
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(addr, 1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]
got = []
signal.signal(signal.SIGUSR1, lambda *a: got.append(1))
def report(name):
    beside = all(ctypes.string_at(full + i * page, page) == b"\7" * page for i in (299, 302, 1499, 1501))
    text = " ".join(str(touch(g)) for g in guards) + " %s" % beside
    open("/srv/new", "w").write(text)
    os.rename("/srv/new", "/srv/" + name)
report("state")
while not got: time.sleep(0.02)
report("verdict")
while True: time.sleep(1)
`), 0o644); err != nil {
		t.Fatal(err)
	}
	p := r.spawn(a, "/usr/bin/python3", py)
	var state string
	r.eventually("python3 to be ready", func() bool {
		state = r.sh(a, "cat /srv/state 2>/dev/null; true")
		return state != ""
	})
	if state == "no guards" {
		t.Skip("this kernel has no guard pages (6.13)")
	}
	const want = "11 11 11 11 True"
	if state != want {
		t.Fatalf("on the source it says %q", state)
	}
	pid, _ := r.move(a, b, p.Pid)
	r.sh(b, "kill -USR1 "+strconv.Itoa(pid))
	r.says(a, "verdict", "cat /srv/verdict 2>/dev/null; true", want)
	r.end(b, pid, "KILL")
	r.clean()
}
