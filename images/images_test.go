package images

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corex86 "github.com/checkpoint-restore/go-criu/v8/crit/images/core-x86"
	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// save writes an image the way CRIU does.
func save(t testing.TB, dir, name string, magic uint32, msgs ...proto.Message) {
	t.Helper()
	im := &image{}
	if magic != magicInventory {
		im.head = binary.LittleEndian.AppendUint32(im.head, magicCommon)
	}
	im.head = binary.LittleEndian.AppendUint32(im.head, magic)
	for _, m := range msgs {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		im.entries = append(im.entries, b)
	}
	if err := im.write(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func entry(start, end uint64, status uint32) *vma.VmaEntry {
	return &vma.VmaEntry{
		Start: &start, End: &end, Pgoff: new(uint64(0)), Shmid: new(uint64(0)), Prot: new(uint32(3)),
		Flags: new(uint32(MapPrivate | MapAnonymous)), Status: &status, Fd: new(int64(-1)),
	}
}

func mmEntry(vmas ...*vma.VmaEntry) *mm.MmEntry {
	z := new(uint64(0))
	return &mm.MmEntry{
		MmStartCode: z, MmEndCode: z, MmStartData: z, MmEndData: z, MmStartStack: z, MmStartBrk: z, MmBrk: z,
		MmArgStart: new(uint64(0x7000)), MmArgEnd: new(uint64(0x7010)), MmEnvStart: new(uint64(0x7010)), MmEnvEnd: new(uint64(0x7100)),
		ExeFileId: new(uint32(1)), Vmas: vmas,
	}
}

func regs() *corex86.ThreadInfoX86 {
	z := new(uint64(0))
	return &corex86.ThreadInfoX86{
		ClearTidAddr: new(uint64(0x1010)),
		Gpregs: &corex86.UserX86RegsEntry{
			R15: z, R14: z, R13: z, R12: z, Bp: z, Bx: z, R11: z, R10: z, R9: z, R8: z, Ax: z, Cx: z, Dx: z, Si: z, Di: z,
			OrigAx: z, Ip: new(uint64(0x401000)), Cs: z, Flags: z, Sp: new(uint64(0x7ff0)), Ss: z, FsBase: new(uint64(0x1000)), GsBase: z,
			Ds: z, Es: z, Fs: z, Gs: z,
		},
		Fpregs: &corex86.UserX86FpregsEntry{
			Cwd: new(uint32(0)), Swd: new(uint32(0)), Twd: new(uint32(0)), Fop: new(uint32(0)), Rip: z, Rdp: z,
			Mxcsr: new(uint32(0)), MxcsrMask: new(uint32(0)),
		},
	}
}

func core() *criucore.CoreEntry {
	march := criucore.CoreEntry_X86_64
	return &criucore.CoreEntry{
		Mtype: &march, ThreadInfo: regs(),
		ThreadCore: &criucore.ThreadCoreEntry{FutexRla: new(uint64(0x1020)), FutexRlaLen: new(uint32(24))},
	}
}

func reg(id uint32, name string) *fdinfo.FileEntry {
	typ := fdinfo.FdTypes_REG
	return &fdinfo.FileEntry{Type: &typ, Id: &id, Reg: &regfile.RegFileEntry{
		Id: &id, Flags: new(uint32(0)), Pos: new(uint64(0)), Name: &name,
		Fown: &fown.FownEntry{Uid: new(uint32(0)), Euid: new(uint32(0)), Signum: new(uint32(0)), PidType: new(uint32(0)), Pid: new(uint32(0))},
	}}
}

func task(pid, ppid uint32, threads ...uint32) *pstree.PstreeEntry {
	return &pstree.PstreeEntry{Pid: &pid, Ppid: &ppid, Pgid: &pid, Sid: &pid, Threads: threads}
}

func run(addr, pages uint64, flags uint32) *pagemap.PagemapEntry {
	return &pagemap.PagemapEntry{Vaddr: &addr, CompatNrPages: new(uint32(0)), NrPages: &pages, Flags: &flags}
}

// sane makes a directory that Validate accepts.
func sane(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	save(t, dir, "inventory.img", magicInventory, &inventory.InventoryEntry{ImgVersion: new(uint32(2))})
	save(t, dir, "pstree.img", magicPstree, task(10, 0, 10, 11), task(12, 10, 12))
	save(t, dir, "core-10.img", magicCore, core())
	save(t, dir, "core-11.img", magicCore, core())
	save(t, dir, "core-12.img", magicCore, core())
	save(t, dir, "mm-10.img", magicMM, mmEntry(entry(0x1000, 0x3000, 1), entry(0x3000, 0x9000, 1), entry(0x1000, 0x2000, StatusGuard)))
	save(t, dir, "pagemap-10.img", magicPagemap, &pagemap.PagemapHead{PagesId: new(uint32(1))}, run(0x2000, 2, 4), run(0x5000, 1, 4))
	if err := os.WriteFile(filepath.Join(dir, "pages-1.img"), make([]byte, 3*pageSize), 0o600); err != nil {
		t.Fatal(err)
	}
	save(t, dir, "files.img", magicFiles, reg(1, "/usr/bin/x"), reg(2, "/usr/../etc/y"), reg(3, "/gone (deleted)"), reg(4, "srv/link_remap.1"), reg(5, "/usr/bin/x"))
	linked := remap.RemapType_LINKED
	save(t, dir, "remap-fpath.img", magicRemap, &remap.RemapFilePathEntry{OrigId: new(uint32(3)), RemapId: new(uint32(4)), RemapType: &linked})
	return dir
}

func TestRead(t *testing.T) {
	dir := sane(t)
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil { // the target's own
		t.Fatal(err)
	}
	if err := Validate(dir); err != nil {
		t.Fatal(err)
	}
	tasks, err := Tasks(dir)
	if err != nil || len(tasks) != 2 || tasks[0].Zombie || !tasks[1].Zombie || !slices.Equal(tasks[0].Threads, []uint32{10, 11}) {
		t.Errorf("%+v, %v", tasks, err)
	}
	th, err := ReadThread(dir, 11)
	if err != nil || th.IP != 0x401000 || th.SP != 0x7ff0 || th.TLS != 0x1000 || th.ClearTID != 0x1010 || th.RobustList != 0x1020 {
		t.Errorf("%+v, %v", th, err)
	}
	args, err := ReadArgs(dir, 10)
	if err != nil || args != (Args{0x7000, 0x7010, 0x7010, 0x7100}) {
		t.Errorf("%+v, %v", args, err)
	}
	paths, err := Paths(dir)
	if err != nil || !slices.Equal(paths, []string{"/etc/y", "/srv/link_remap.1", "/usr/bin/x"}) {
		t.Errorf("%v, %v", paths, err)
	}
	remaps, err := LinkRemaps(dir)
	if err != nil || !slices.Equal(remaps, []string{"/srv/link_remap.1"}) {
		t.Errorf("%v, %v", remaps, err)
	}
}

func TestAddVMAs(t *testing.T) {
	dir := sane(t)
	// An unknown field, as a later CRIU may have, survives.
	path := filepath.Join(dir, "mm-10.img")
	im, err := readImage(path, magicMM)
	if err != nil {
		t.Fatal(err)
	}
	im.entries[0] = protowire.AppendVarint(protowire.AppendTag(im.entries[0], 99, protowire.VarintType), 4711)
	if err := im.write(path); err != nil {
		t.Fatal(err)
	}

	heap := VMA{Start: 0xa000, End: 0xc000, Prot: 3, Flags: MapPrivate | MapAnonymous, Status: StatusRegular | StatusAnonPrivate | StatusHeap, Madv: 1 << 14}
	low := VMA{Start: 0x0, End: 0x1000, Prot: 0, Flags: MapPrivate | MapAnonymous | MapNoReserve, Status: StatusRegular | StatusAnonPrivate}
	if err := AddVMAs(dir, 10, []VMA{heap, low}); err != nil {
		t.Fatal(err)
	}
	vmas, err := VMAs(dir, 10)
	if err != nil {
		t.Fatal(err)
	}
	var starts []uint64
	for _, v := range vmas {
		starts = append(starts, v.Start)
	}
	if !slices.Equal(starts, []uint64{0, 0x1000, 0x3000, 0xa000, 0x1000}) || vmas[0] != low || vmas[3] != heap || vmas[4].Status != StatusGuard {
		t.Errorf("%+v", vmas)
	}
	if err := Validate(dir); err != nil {
		t.Error(err)
	}
	var m mm.MmEntry
	if _, err := readOne(path, magicMM, &m); err != nil {
		t.Fatal(err)
	}
	if len(m.ProtoReflect().GetUnknown()) == 0 {
		t.Error("the unknown field is lost")
	}
	if err := AddVMAs(dir, 10, []VMA{{Start: 0xb000, End: 0xd000}}); !errors.Is(err, ErrFormat) {
		t.Errorf("overlap: %v", err)
	}
	if err := AddVMAs(dir, 10, []VMA{{Start: 0x10001, End: 0x12000}}); !errors.Is(err, ErrFormat) {
		t.Errorf("unaligned: %v", err)
	}
	if got, _ := VMAs(dir, 10); len(got) != 5 {
		t.Errorf("a refused edit has changed the image: %+v", got)
	}
}

func TestLazy(t *testing.T) {
	anon := uint32(MapPrivate | MapAnonymous)
	for _, c := range []struct {
		v    VMA
		want bool
	}{
		{VMA{Flags: anon, Status: StatusRegular | StatusAnonPrivate}, true},
		{VMA{Flags: anon | MapLocked, Status: StatusRegular}, false},
		{VMA{Flags: anon | MapHugeTLB, Status: StatusRegular}, false},
		{VMA{Flags: MapPrivate, Status: StatusRegular}, false},
		{VMA{Flags: 1 | MapAnonymous, Status: StatusRegular}, false},
		{VMA{Flags: anon, Status: StatusRegular | StatusVDSO}, false},
		{VMA{Flags: anon, Status: StatusVVAR}, false},
		{VMA{Flags: anon, Status: StatusVsyscall}, false},
		{VMA{Flags: 0, Status: StatusGuard}, false},
	} {
		if c.v.Lazy() != c.want {
			t.Errorf("%+v: %v", c.v, !c.want)
		}
	}
}

// TestValidate breaks a sane directory in one way at a time.
func TestValidate(t *testing.T) {
	head := &pagemap.PagemapHead{PagesId: new(uint32(1))}
	for name, breakIt := range map[string]func(dir string){
		"foreign name":  func(d string) { _ = os.WriteFile(filepath.Join(d, "Evil"), nil, 0o600) },
		"link":          func(d string) { _ = os.Symlink("/etc/passwd", filepath.Join(d, "fs-10.img")) },
		"directory":     func(d string) { _ = os.Mkdir(filepath.Join(d, "fs-10.img"), 0o700) },
		"no inventory":  func(d string) { os.Remove(filepath.Join(d, "inventory.img")) },
		"no files":      func(d string) { os.Remove(filepath.Join(d, "files.img")) },
		"no task":       func(d string) { save(t, d, "pstree.img", magicPstree) },
		"task twice":    func(d string) { save(t, d, "pstree.img", magicPstree, task(10, 0, 10), task(10, 10, 10)) },
		"orphan":        func(d string) { save(t, d, "pstree.img", magicPstree, task(10, 0, 10), task(12, 9, 12)) },
		"PID 0":         func(d string) { save(t, d, "pstree.img", magicPstree, task(0, 0)) },
		"no core":       func(d string) { os.Remove(filepath.Join(d, "core-11.img")) },
		"wrong magic":   func(d string) { save(t, d, "mm-10.img", magicCore, mmEntry()) },
		"empty":         func(d string) { _ = os.WriteFile(filepath.Join(d, "mm-10.img"), nil, 0o600) },
		"cut":           func(d string) { _ = os.Truncate(filepath.Join(d, "mm-10.img"), 20) },
		"VMA backwards": func(d string) { save(t, d, "mm-10.img", magicMM, mmEntry(entry(0x3000, 0x1000, 1))) },
		"VMA too high":  func(d string) { save(t, d, "mm-10.img", magicMM, mmEntry(entry(0, 1<<60, 1))) },
		"VMAs overlap": func(d string) {
			save(t, d, "mm-10.img", magicMM, mmEntry(entry(0x1000, 0x9000, 1), entry(0x8000, 0xa000, 1)))
		},
		"pages elsewhere": func(d string) { save(t, d, "pagemap-10.img", magicPagemap, head, run(0x9000, 1, 4)) },
		"pages too many":  func(d string) { save(t, d, "pagemap-10.img", magicPagemap, head, run(0x1000, 1<<60, 4)) },
		"pages wrap":      func(d string) { save(t, d, "pagemap-10.img", magicPagemap, head, run(1<<55, 1<<44, 4)) },
		"pages twice":     func(d string) { save(t, d, "pagemap-10.img", magicPagemap, head, run(0x1000, 2, 4), run(0x2000, 1, 4)) },
		"pages missing":   func(d string) { _ = os.Truncate(filepath.Join(d, "pages-1.img"), pageSize) },
		"no pages image":  func(d string) { os.Remove(filepath.Join(d, "pages-1.img")) },
		"in a parent":     func(d string) { save(t, d, "pagemap-10.img", magicPagemap, head, run(0x1000, 1, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := sane(t)
			breakIt(dir)
			if err := Validate(dir); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"core-12.img": true, "pages-1.img": true, "files.img": true, "remap-fpath.img": true, "stats-dump": true,
		"tcp-stream-1f.img": true, "": false, "..": false, "a/b.img": false, "-x.img": false, "core-1.img.new": false, "core 1.img": false,
		fmt.Sprintf("%0200d.img", 1): false,
	} {
		if ValidName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

// FuzzValidate feeds a peer's bytes to everything that is parsed here.
func FuzzValidate(f *testing.F) {
	dir := sane(f)
	names := []string{"pstree.img", "mm-10.img", "pagemap-10.img", "core-10.img", "files.img", "remap-fpath.img", "inventory.img"}
	for i, n := range names {
		b, err := os.ReadFile(filepath.Join(dir, n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		name := names[int(which)%len(names)]
		path := filepath.Join(dir, name)
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.WriteFile(path, old, 0o600) }()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if Validate(dir) != nil {
			return
		}
		// What is accepted can be read.
		if _, err := Tasks(dir); err != nil {
			t.Error(err)
		}
		if _, err := Paths(dir); err != nil {
			t.Error(err)
		}
		if _, err := Established(dir); err != nil {
			t.Error(err)
		}
	})
}
