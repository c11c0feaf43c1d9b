package pagesrv

import "time"

// Packing compresses memory that is sent otherwise than by answers, chosen by the same rules, for one goroutine.
type Packing struct {
	packer  *packer
	chooser *chooser
	buf     []byte
}

// NewPacking makes one; mode is as ServerOptions.Compress.
func NewPacking(mode string) (*Packing, error) {
	if err := CheckCompress(mode); err != nil {
		return nil, err
	}
	p, err := packers()
	return &Packing{packer: p, chooser: newChooser(mode)}, err
}

// Pack returns src, or what it is compressed to and how, as flags of a frame (wire.FlagS2, wire.FlagZstd). That stays good until the next call.
func (p *Packing) Pack(src []byte) (out []byte, flags uint16) {
	if len(src) < packLeast {
		return src, 0
	}
	how, sample := p.chooser.next(packings)
	if sample {
		for _, other := range []packing{packedS2, packedZstd} {
			if other != how {
				p.try(other, src[:min(len(src), sampleSize)])
			}
		}
	}
	if how == unpacked || !p.try(how, src) {
		return src, 0
	}
	return p.buf, uint16(how)
}

// try packs into buf and says whether that saves something.
func (p *Packing) try(how packing, src []byte) bool {
	began := time.Now()
	var ok bool
	p.buf, ok = p.packer.pack(how, p.buf, src)
	out := len(p.buf)
	if !ok {
		out = len(src)
	}
	p.chooser.packed(how, len(src), out, time.Since(began))
	return ok
}

// Sent notes that n bytes took d on the line.
func (p *Packing) Sent(n int, d time.Duration) {
	if n >= packLeast {
		p.chooser.sent(n, d)
	}
}

// Unpacking is the other end of Packing. The zero value works.
type Unpacking struct {
	unpacker unpacker
	buf      []byte
}

// Unpack returns what src holds, which must be n bytes, MaxPages pages at most; flags are those that Pack gave. src is a peer's. What is returned stays good
// until the next call.
func (u *Unpacking) Unpack(flags uint16, src []byte, n int) ([]byte, error) {
	how := packing(flags)
	if how == unpacked && len(src) == n {
		return src, nil
	}
	if n < 0 || n > MaxPages*PageSize || how&^packings != 0 {
		return nil, ErrProtocol
	}
	if cap(u.buf) < n {
		u.buf = make([]byte, n)
	}
	return u.buf[:n], u.unpacker.unpack(how, u.buf[:n], src)
}

// Close frees what Unpack has made.
func (u *Unpacking) Close() { u.unpacker.close() }
