package dump

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestABI(t *testing.T) {
	for name, s := range map[string][2]uintptr{
		"prog_load":   {unsafe.Sizeof(bpfProgLoadAttr{}), 120},
		"attach id":   {unsafe.Offsetof(bpfProgLoadAttr{}.AttachBTFID), 108},
		"attach type": {unsafe.Offsetof(bpfProgLoadAttr{}.ExpectedAttachType), 68},
		"link_create": {unsafe.Sizeof(bpfLinkCreateAttr{}), 32},
		"iter info":   {unsafe.Offsetof(bpfLinkCreateAttr{}.IterInfo), 16},
		"iter_create": {unsafe.Sizeof(bpfIterCreateAttr{}), 8},
		"task":        {unsafe.Sizeof(bpfIterTask{}), 16},
		"insn":        {unsafe.Sizeof(bpfInsn{}), 8},
	} {
		if s[0] != s[1] {
			t.Errorf("%s: %d instead of %d", name, s[0], s[1])
		}
	}
}

// TestFlagReader: the iterator sees what smaps shows, and a change of flags that maps does not show.
func TestFlagReader(t *testing.T) {
	r, err := openFlagReader()
	if err != nil {
		t.Skip("this kernel has no BPF iterator, smaps is read twice instead:", err)
	}
	defer r.close()
	mem, err := unix.Mmap(-1, 0, 4*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mem) }()
	at := uint64(uintptr(unsafe.Pointer(&mem[0])))
	flags := func() uint64 {
		t.Helper()
		list, err := r.read(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list {
			if v.start <= at && at < v.end {
				return v.flags
			}
		}
		t.Fatalf("%#x is in no mapping of %d", at, len(list))
		return 0
	}
	before := flags()
	for name, change := range map[string][2]func() error{
		"wiped on fork": {func() error { return unix.Madvise(mem, unix.MADV_WIPEONFORK) }, func() error { return unix.Madvise(mem, unix.MADV_KEEPONFORK) }},
		"locked":        {func() error { return unix.Mlock(mem) }, func() error { return unix.Munlock(mem) }},
	} {
		if err := change[0](); err != nil {
			t.Fatal(err)
		}
		if flags() == before {
			t.Errorf("%s: no change seen", name)
		}
		if err := change[1](); err != nil {
			t.Fatal(err)
		}
		if now := flags(); now != before {
			t.Errorf("not %s any more: flags %#x, were %#x", name, now, before)
		}
	}
	if _, err := r.read(1 << 22); err == nil {
		t.Error("a process that does not exist has mappings")
	}
}

func FuzzBTF(f *testing.F) {
	f.Add([]byte{0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 4, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseBTF(b)
		if err != nil {
			return
		}
		if id, err := p.find(btfStruct, "x"); err == nil {
			_, _ = p.member(id, "y")
		}
	})
}
