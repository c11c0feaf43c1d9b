package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestKinds moves processes and memory of many kinds: a zombie, a stopped child, sessions, locked memory, memory without access, … The agent does
// not push memory until all has been looked at once, so that nothing is there but what was asked for, and what must never be asked for:
// a thread that ends, and whoever looks at arguments, does not wait for pages. Meanwhile the frozen tree on A has let go of its peers.
func TestKinds(t *testing.T) {
	kerneltest.NeedProgram(t, "python3")
	r := newHosts(t, "kinds")
	a, b := r.l.A, r.l.B
	ag := r.agentWith(b, []string{"LAZYMIG_PARK=drain:" + gate})
	const dir = "/srv/kinds"
	r.sh(a, "mkdir -p "+dir+"/t1 "+dir+"/t2; for d in t1 t2; do mount -t tmpfs none "+dir+"/$d; echo $d >"+dir+"/$d/f; done")
	p := r.spawn(a, r.dir+"/kinds", dir)
	r.says(a, "tree to listen", "ls "+dir+"/listens", dir+"/listens")
	peer := a.Command(r.ctx, "/usr/bin/python3", "-c", `import socket
s = socket.create_connection(("127.0.0.1", 8130))
try: print("got", s.recv(1))
except ConnectionResetError: print("reset")`)
	var said logBuffer
	peer.Stdout = &said
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	r.says(a, "tree to be ready", "ls "+dir+"/ready", dir+"/ready")
	args := fmt.Sprintf("tr '\\0' ' ' </proc/%d/cmdline; tr '\\0' '\\n' </proc/%[1]d/environ | sort", p.Pid)
	were := r.sh(a, args)
	pid, m := r.move(a, b, p.Pid, "--until", "resumed")
	r.parked(ag)
	if e := m.get("resumed"); e.TCPClosed != 1 {
		t.Errorf("%d connections are said to be closed", e.TCPClosed)
	}

	if is := r.sh(b, strings.Replace(args, fmt.Sprint(p.Pid), fmt.Sprint(pid), 2)); is != were || !strings.Contains(were, "/kinds "+dir) {
		t.Errorf("arguments and environment on B: %q, were %q", is, were)
	}
	r.eventually("peer of the frozen tree to be told", func() bool { return said.String() != "" })
	if err := peer.Wait(); err != nil || said.String() != "reset\n" {
		t.Errorf("the peer of the frozen tree: %v, %q", err, said.String())
	}
	if out := r.sh(a, `python3 -c "import socket; socket.create_connection(('127.0.0.1', 8130))" 2>&1; true`); !strings.Contains(out, "refused") {
		t.Errorf("the frozen tree still takes connections: %s", out)
	}
	if s := r.states(a); !slices.Equal(s, []string{"source resumed"}) || r.sh(a, fmt.Sprintf("kill -0 %d && echo there", p.Pid)) != "there" {
		t.Errorf("the frozen tree has not been looked at: %q", s)
	}

	look := func() {
		t.Helper()
		r.sh(a, "rm -f "+dir+"/verdict")
		r.sh(b, fmt.Sprintf("kill -USR1 %d", pid))
		r.eventually("verdict", func() bool { return r.sh(a, "cat "+dir+"/verdict 2>/dev/null; true") != "" })
		if v := r.sh(a, "cat "+dir+"/verdict"); v != "OK" {
			t.Errorf("the tree says: %s", v)
		}
	}
	look()
	r.sh(b, "touch "+gate)
	r.eventually("memory to be there", func() bool { return slices.Equal(r.states(a), []string{"source drained"}) })
	look()
	r.end(b, pid, "KILL")
	r.sh(b, "pkill -KILL -x kinds; true")
	r.eventually("end of the tree", func() bool { return slices.Equal(r.states(a), []string{"source ended"}) })
	r.clean()
}
