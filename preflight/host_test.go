package preflight

import (
	"context"
	"encoding/json"
	"net"
	"os/exec"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lazymig/lazymig/internal/kerneltest"
)

// TestHost looks at the host of the tests, which must do.
func TestHost(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	all := Host(ctx, HostOptions{CRIUPath: kerneltest.CRIUPath(t), StateDir: t.TempDir() + "/not/there/yet"})
	if err := Refusals(all); err != nil {
		t.Error(err)
	}
	if len(all) < len(needs) {
		t.Errorf("%d findings", len(all))
	}
	all = Host(ctx, HostOptions{CRIUPath: "/nonexistent/criu"})
	if i := slices.IndexFunc(all, func(f Finding) bool { return f.Code == "criu" }); all[i].Level != Refuse || all[i].Do == "" {
		t.Errorf("without CRIU: %s", all[i])
	}
}

// TestLocalFacts compares with what the system says, and shows that facts pass the wire.
func TestLocalFacts(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	f := LocalFacts(ctx, HostOptions{CRIUPath: kerneltest.CRIUPath(t), StateDir: t.TempDir()})
	if out, err := exec.Command("uname", "-rm").Output(); err != nil || f.Kernel+" "+f.Arch+"\n" != string(out) {
		t.Errorf("kernel %s %s, uname says %q (%v)", f.Kernel, f.Arch, out, err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	if !slices.Contains(f.Bound, Listen{"tcp", "127.0.0.1", port}) {
		t.Errorf("port %d is missing in %v", port, f.Bound)
	}
	if !slices.Contains(f.Addresses, "127.0.0.1") || len(f.CPUFlags) == 0 || f.MemFree == 0 || f.MemTotal < f.MemFree || f.StateFree == 0 || f.PidMax == 0 || f.CRIU == "" || f.CRIUError != "" {
		t.Errorf("facts are missing: %+v", f)
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var back Facts
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(f, back) {
		t.Errorf("facts changed by JSON: %v\n%+v\n%+v", err, f, back)
	}
	// This host can take over a process of its own, but not its port.
	tree := &Tree{Root: 1000, Listens: []Listen{{"tcp", "127.0.0.1", port}}}
	all := Compare(tree, f, f)
	for _, f := range all {
		if f.Level == Refuse && f.Code != "port-taken" {
			t.Errorf("to itself: %s", f)
		}
	}
	if !slices.ContainsFunc(all, func(f Finding) bool { return f.Code == "port-taken" }) {
		t.Error("the port that is taken was not found")
	}
}
