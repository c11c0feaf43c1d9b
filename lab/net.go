package lab

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// The hosts' addresses. They are the same in every lab: no two labs share a
// network namespace.
const (
	addrA   = "10.77.0.1"
	addrB   = "10.77.0.2"
	netBits = "/24"
	nic     = "eth0"
)

// connect makes the veth pair between the hosts.
func (l *Lab) connect(ctx context.Context) error {
	// The name "eth0" is free in both: each network namespace is new. ip takes a
	// path of a namespace where it wants its name.
	steps := []struct {
		h    *Host
		args []string
	}{
		{l.A, []string{"link", "add", nic, "type", "veth", "peer", "name", nic, "netns", fmt.Sprintf("/proc/%d/ns/net", l.B.Pid)}},
	}
	for _, h := range []*Host{l.A, l.B} {
		steps = append(steps, []struct {
			h    *Host
			args []string
		}{
			{h, []string{"link", "set", "lo", "up"}},
			{h, []string{"addr", "add", h.Addr + netBits, "dev", nic}},
			{h, []string{"link", "set", nic, "up"}},
		}...)
	}
	for _, s := range steps {
		if err := s.h.ip(ctx, s.args...); err != nil {
			return err
		}
	}
	return nil
}

// ip runs the machine's ip(8) in the host's network namespace.
func (h *Host) ip(ctx context.Context, args ...string) error {
	argv := append([]string{"--net=/proc/" + strconv.Itoa(h.Pid) + "/ns/net", "ip"}, args...)
	out, err := exec.CommandContext(ctx, "nsenter", argv...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run ip %s on %s: %w: %s", strings.Join(args, " "), h.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// CutLink takes the link between the hosts down: packets are lost, nobody is told.
func (l *Lab) CutLink(ctx context.Context) error { return l.A.ip(ctx, "link", "set", nic, "down") }

// RestoreLink brings it up again.
func (l *Lab) RestoreLink(ctx context.Context) error { return l.A.ip(ctx, "link", "set", nic, "up") }
