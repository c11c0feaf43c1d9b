package dump

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// errNoBTF says that the kernel does not tell its types, or not those that are needed.
var errNoBTF = errors.New("kernel has no usable BTF")

// BTF_KIND_ numbers (include/uapi/linux/btf.h) that are told apart here.
const (
	btfStruct = 4
	btfUnion  = 5
	btfFunc   = 12
)

// btfTail is what follows the 12 bytes of a type: bytes, or bytes for each of its vlen parts.
var btfTail = [...]struct{ fixed, each int }{
	1: {4, 0}, 2: {}, 3: {12, 0}, 4: {0, 12}, 5: {0, 12}, 6: {0, 8}, 7: {}, 8: {}, 9: {}, 10: {}, 11: {}, 12: {},
	13: {0, 8}, 14: {4, 0}, 15: {0, 12}, 16: {}, 17: {4, 0}, 18: {}, 19: {0, 12},
}

// btf is the kernel's description of its own types.
type btf struct {
	b       []byte // types
	strings []byte
	at      []int // by type ID
}

func readBTF() (*btf, error) {
	b, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoBTF, err)
	}
	return parseBTF(b)
}

func parseBTF(b []byte) (*btf, error) {
	bad := func(what string) (*btf, error) { return nil, fmt.Errorf("%w: %s: %w", errNoBTF, what, unix.EINVAL) }
	if len(b) < 24 || binary.NativeEndian.Uint16(b) != 0xeb9f {
		return bad("header")
	}
	var h [5]uint64
	for i := range h {
		h[i] = uint64(binary.NativeEndian.Uint32(b[4+4*i:]))
	}
	hdr, size := h[0], uint64(len(b))
	if hdr+h[1]+h[2] > size || hdr+h[3]+h[4] > size {
		return bad("header")
	}
	t := &btf{b: b[hdr+h[1] : hdr+h[1]+h[2]], strings: b[hdr+h[3] : hdr+h[3]+h[4]], at: []int{0}} // ID 0 is void
	for i := 0; i < len(t.b); {
		if i+12 > len(t.b) {
			return bad("type")
		}
		kind, vlen := t.kind(i)
		if kind == 0 || kind >= len(btfTail) {
			return bad(fmt.Sprintf("kind %d", kind))
		}
		t.at = append(t.at, i)
		i += 12 + btfTail[kind].fixed + btfTail[kind].each*vlen
		if i > len(t.b) {
			return bad("type")
		}
	}
	return t, nil
}

func (t *btf) kind(at int) (kind, vlen int) {
	info := binary.NativeEndian.Uint32(t.b[at+4:])
	return int(info >> 24 & 31), int(info & 0xffff)
}

// named says whether the name at an offset of the strings is the one that is asked for.
func (t *btf) named(off uint32, name string) bool {
	if uint64(off) >= uint64(len(t.strings)) {
		return false
	}
	rest, ok := bytes.CutPrefix(t.strings[off:], []byte(name))
	return ok && len(rest) > 0 && rest[0] == 0
}

// find returns the ID of a type.
func (t *btf) find(kind int, name string) (int, error) {
	for id := 1; id < len(t.at); id++ {
		if k, _ := t.kind(t.at[id]); k == kind && t.named(binary.NativeEndian.Uint32(t.b[t.at[id]:]), name) {
			return id, nil
		}
	}
	return 0, fmt.Errorf("%w: no %s", errNoBTF, name)
}

// member returns the offset in bytes of a member, also of one in an anonymous struct or union within.
func (t *btf) member(id int, name string) (int16, error) {
	if off, ok := t.lookFor(id, name, 4); ok && off >= 0 && off < 1<<15 {
		return int16(off), nil
	}
	return 0, fmt.Errorf("%w: no member %s", errNoBTF, name)
}

func (t *btf) lookFor(id int, name string, depth int) (int, bool) {
	if depth == 0 || id <= 0 || id >= len(t.at) {
		return 0, false
	}
	at := t.at[id]
	kind, vlen := t.kind(at)
	if kind != btfStruct && kind != btfUnion {
		return 0, false
	}
	for i := range vlen {
		m := t.b[at+12+12*i:]
		nameOff, typ := binary.NativeEndian.Uint32(m), binary.NativeEndian.Uint32(m[4:])
		off := int(binary.NativeEndian.Uint32(m[8:])&0xffffff) / 8 // the high byte is a bit field's size
		if t.named(nameOff, name) {
			return off, true
		}
		if nameOff == 0 {
			if in, ok := t.lookFor(int(typ), name, depth-1); ok {
				return off + in, true
			}
		}
	}
	return 0, false
}
