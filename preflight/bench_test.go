package preflight

import (
	"os/exec"
	"testing"
)

// BenchmarkProcess looks at a process that does nothing, with and without the probe.
func BenchmarkProcess(b *testing.B) {
	cmd := exec.Command("sleep", "3600")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for name, opt := range map[string]Options{"whole": {}, "no-probe": {NoProbe: true}} {
		opt.PID = cmd.Process.Pid
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Process(b.Context(), opt); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
