package pagesrv

import (
	"time"

	"github.com/lazymig/lazymig/wire"
)

// packLeast is the least that is worth packing.
const packLeast = 16 << 10

// send sends what has been read. What somebody waits for goes as it is; bulk answers take turns, so that the time of each is the line's, and
// may be packed: one is while another is sent.
func (sv *serving) send(h wire.Header, r *reading, parts [][]byte, waited bool) error {
	b := sv.s.opts.Budget
	if sv.lane == wire.LaneUrgent {
		if n := size(parts); waited {
			b.Spend(n)
		} else {
			b.Memory(sv.s.done, n)
		}
		sv.stats.bytes.Add(uint64(size(parts[1:])))
		return sv.c.Send(wire.MsgPaged, 0, h.ID, parts...)
	}
	how, parts := sv.pack(packing(h.Flags)&packings, r, parts)
	n := size(parts)
	sv.stats.bytes.Add(uint64(size(parts[1:])))
	sv.sending.Lock()
	defer sv.sending.Unlock()
	began := time.Now()
	b.Memory(sv.s.done, n)
	err := sv.c.Send(wire.MsgPaged, uint16(how), h.ID, parts...)
	if n >= packLeast {
		sv.s.chooser.sent(n, time.Since(began))
	}
	return err
}

// pack compresses an answer's bytes, all parts but the first, if that is worth it.
func (sv *serving) pack(known packing, r *reading, parts [][]byte) (packing, [][]byte) {
	n := size(parts[1:])
	if n < packLeast {
		return unpacked, parts
	}
	how, sample := sv.s.chooser.next(known)
	if how == unpacked && !sample {
		return unpacked, parts
	}
	flat := parts[1]
	if len(parts) > 2 {
		r.flat = r.flat[:0]
		for _, p := range parts[1:] {
			r.flat = append(r.flat, p...)
		}
		flat = r.flat
	}
	if sample {
		for _, other := range []packing{packedS2, packedZstd} {
			if other != how {
				sv.tryPack(other, r, flat[:min(len(flat), sampleSize)])
			}
		}
	}
	if how == unpacked || !sv.tryPack(how, r, flat) {
		return unpacked, parts
	}
	return how, append(parts[:1], r.packed)
}

// tryPack packs into r.packed and says whether that saves something.
func (sv *serving) tryPack(how packing, r *reading, src []byte) bool {
	began := time.Now()
	var ok bool
	r.packed, ok = sv.s.packer.pack(how, r.packed, src)
	out := len(r.packed)
	if !ok {
		out = len(src)
	}
	sv.s.chooser.packed(how, len(src), out, time.Since(began))
	return ok
}

func size(parts [][]byte) (n int) {
	for _, p := range parts {
		n += len(p)
	}
	return n
}
