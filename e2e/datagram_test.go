package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/lab"
)

// journal is where journald receives what programs write to /dev/log, which is a link to it.
const journal = "/run/systemd/journal/dev-log"

// receiver receives datagrams on a host, at journal and at an abstract name, and writes them to /srv/log.
func (r *rig) receiver(h *lab.Host) {
	r.t.Helper()
	r.spawn(h, "/usr/bin/python3", "-c", `import os, select, socket
os.makedirs(os.path.dirname("`+journal+`"), exist_ok=True)
out = open("/srv/log", "w", buffering=1)
socks = []
for name in "`+journal+`", "\0lazymig-test":
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.bind(name)
    socks.append(s)
out.write("ready\n")
while True:
    for s in select.select(socks, [], [])[0]:
        out.write(s.recv(4096).decode() + "\n")
`)
	r.says(h, "receiver to be ready", "cat /srv/log 2>/dev/null; true", "ready")
}

// TestDatagrams moves a process whose datagram sockets are connected to named ones of its host, as syslog's and journald's clients' are.
// Where nobody receives at the target nothing is touched, and the reason names the socket; else the target's gets what follows.
func TestDatagrams(t *testing.T) {
	r := newRig(t)
	a, b := r.l.A, r.l.B
	py := filepath.Join(r.dir, "sender.py")
	if err := os.WriteFile(py, []byte(`import signal, socket, time
socks = []
for name in "`+journal+`", "\0lazymig-test":
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(name)
    socks.append(s)
got = []
signal.signal(signal.SIGUSR1, lambda *a: got.append(1))
with open("/srv/ready", "w") as f:
    f.write("ready")
n = 0
while True:
    while n == len(got):
        time.sleep(0.01)
    n += 1
    for i, s in enumerate(socks):
        s.send(b"message %d by socket %d" % (n, i))
`), 0o644); err != nil {
		t.Fatal(err)
	}
	r.receiver(a)
	p := r.spawn(a, "/usr/bin/python3", py)
	r.says(a, "sender to be connected", "cat /srv/ready 2>/dev/null; true", "ready")
	said := func(n int) string {
		return "message " + strconv.Itoa(n) + " by socket 0\nmessage " + strconv.Itoa(n) + " by socket 1"
	}
	r.sh(a, "kill -USR1 "+strconv.Itoa(p.Pid))
	r.says(a, "the source to get it", "cat /srv/log", "ready\n"+said(1))

	m := r.try(a, b, p.Pid)
	if m.code == 0 || !strings.Contains(m.stderr, journal) {
		t.Fatalf("nobody receives on the target: migrate ended with %d: %s", m.code, m.stderr)
	}
	r.sh(a, "kill -USR1 "+strconv.Itoa(p.Pid))
	r.says(a, "the source to go on", "cat /srv/log", "ready\n"+said(1)+"\n"+said(2))

	r.receiver(b)
	pid, _ := r.move(a, b, p.Pid)
	r.sh(b, "kill -USR1 "+strconv.Itoa(pid))
	r.says(b, "the target to get it", "cat /srv/log", "ready\n"+said(3))
	r.says(a, "the source to get nothing", "cat /srv/log", "ready\n"+said(1)+"\n"+said(2))
	r.end(b, pid, "KILL")
	r.clean()
}
