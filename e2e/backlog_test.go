package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
	"github.com/lazymig/lazymig/migrate"
)

// TestBacklog moves a listener with connections that nobody has accepted yet: it is told before, they end like established ones, the listener takes others.
func TestBacklog(t *testing.T) {
	kerneltest.NeedProgram(t, "python3")
	r := newRig(t)
	a, b := r.l.A, r.l.B
	p := r.spawn(a, "/usr/bin/python3", "-c", `import signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
s = socket.create_server(("127.0.0.1", 8133))
signal.sigwait({signal.SIGUSR1})
while True:
    c, _ = s.accept()
    c.send(b"hello")
    c.close()`)
	r.eventually("listener", func() bool { return r.sh(a, "ss -Hltn 'sport = :8133' | wc -l") == "1" })
	peer := a.Command(r.ctx, "/usr/bin/python3", "-c", `import socket
s = [socket.create_connection(("127.0.0.1", 8133)) for _ in range(2)]
print("connected", flush=True)
for c in s:
    try: print("got", c.recv(9))
    except ConnectionResetError: print("reset")`)
	var said logBuffer
	peer.Stdout = &said
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	r.eventually("connections", func() bool { return strings.HasPrefix(said.String(), "connected") })
	pid, m := r.move(a, b, p.Pid)
	if !slices.ContainsFunc(m.events, func(e migrate.Event) bool {
		return e.Event == "notice" && strings.Contains(e.Text, "2 connections wait to be accepted on 127.0.0.1:8133")
	}) {
		t.Errorf("the connections were not told of: %+v", m.events)
	}
	if err := peer.Wait(); err != nil || said.String() != "connected\nreset\nreset\n" {
		t.Errorf("peer: %v, %q", err, said.String())
	}
	r.sh(b, fmt.Sprint("kill -USR1 ", pid))
	out := r.sh(b, `python3 -c "import socket; print(socket.create_connection(('127.0.0.1', 8133)).recv(9).decode())"`)
	if out != "hello" {
		t.Errorf("on B it says %q", out)
	}
	r.end(b, pid, "KILL")
	r.clean()
}
