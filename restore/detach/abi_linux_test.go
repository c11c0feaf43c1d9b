package detach

import (
	"testing"
	"unsafe"
)

func TestABISizes(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"prctl_mm_map", unsafe.Sizeof(mmMap{}), 104},
		{"siginfo_t", unsafe.Sizeof(siginfo{}), 128},
		{"unix_diag_req", unsafe.Sizeof(unixDiagReq{}), 24},
		{"kcmp_epoll_slot", unsafe.Sizeof(epollSlot{}), 12},
	} {
		if c.got != c.want {
			t.Errorf("%s has %d bytes, want %d", c.name, c.got, c.want)
		}
	}
}
