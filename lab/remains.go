package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// remains prints what of lazymig is on a host besides agents, their starters and records: processes, mounts, directories in memory, and cgroups of the
// migrations that it has records of (the machine's other cgroups are seen, too).
const remains = `for p in /proc/[0-9]*; do c=$(cat $p/comm 2>/dev/null); case "$c" in lazymig|exe) tr '\0' ' ' <$p/cmdline | grep lazymig | grep -v -e ' agent ' -e ' starter ' | sed "s/^/process: /";; criu*) echo "process: $c";; esac; done
grep -i lazymig /proc/mounts | grep -v -e ' /var/lib/lazymig ' -e '/bin ' -e '/\.cache/' -e '^lazymig-lab' | grep -e fuse -e smaps -e capsule | sed 's/^/mount: /'
for i in $(ls -d /var/lib/lazymig/*.source /var/lib/lazymig/*.target 2>/dev/null | sed 's,.*/\(........\).*,\1,' | sort -u); do find /sys/fs/cgroup -type d -name "lazymig-$i*" 2>/dev/null; done | sed 's/^/cgroup: /'
ls -d /run/lazymig-* /dev/shm/lazymig-* 2>/dev/null | grep -v /run/lazymig-lab | sed 's/^/directory: /'
true`

// Remains waits until nothing of lazymig but agents is left on either host, and else says, when ctx ends, what is.
func (l *Lab) Remains(ctx context.Context) (string, error) {
	for {
		var all strings.Builder
		for _, h := range []*Host{l.A, l.B} {
			out, err := h.Command(context.WithoutCancel(ctx), "/bin/sh", "-c", remains).CombinedOutput()
			var ee *exec.ExitError
			if err != nil && !errors.As(err, &ee) {
				return "", fmt.Errorf("look at host %s: %w", h.Name, err)
			}
			for line := range strings.Lines(string(out)) {
				fmt.Fprintf(&all, "host %s: %s", h.Name, line)
			}
		}
		if all.Len() == 0 || ctx.Err() != nil {
			return all.String(), nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
