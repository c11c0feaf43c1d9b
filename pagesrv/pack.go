package pagesrv

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/lazymig/lazymig/wire"
)

// packing is how the bytes of an answer are compressed. Its value is the flag of the frame.
type packing uint16

const (
	unpacked   packing = 0
	packedS2   packing = packing(wire.FlagS2)
	packedZstd packing = packing(wire.FlagZstd)

	packings = packedS2 | packedZstd
)

// packer compresses for any number of goroutines.
type packer struct{ zstd *zstd.Encoder }

var packers = sync.OnceValues(func() (*packer, error) {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(256<<10), zstd.WithEncoderCRC(false))
	return &packer{z}, err
})

// pack appends src, compressed, to dst[:0]. If that saves less than an eighth it says no.
func (p *packer) pack(how packing, dst, src []byte) (out []byte, ok bool) {
	switch how {
	case packedS2:
		out = s2.Encode(dst[:cap(dst)], src)
	case packedZstd:
		out = p.zstd.EncodeAll(src, dst[:0])
	default:
		return dst, false
	}
	return out, len(out) <= len(src)-len(src)/8
}

// unpacker decompresses for one goroutine.
type unpacker struct{ zstd *zstd.Decoder }

// unpack fills dst, which must be exactly what src holds: src is a peer's.
func (u *unpacker) unpack(how packing, dst, src []byte) error {
	n := -1
	switch how {
	case packedS2:
		size, err := s2.DecodedLen(src)
		if err == nil && size != len(dst) {
			err = fmt.Errorf("a block of %d bytes where %d are expected", size, len(dst))
		}
		if err != nil {
			return fmt.Errorf("unpack pages: %w: %w", ErrProtocol, err)
		}
		out, err := s2.Decode(dst, src)
		if err != nil {
			return fmt.Errorf("unpack pages: %w: %w", ErrProtocol, err)
		}
		n = len(out)
	case packedZstd:
		if u.zstd == nil {
			var err error
			if u.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxPages*PageSize)); err != nil {
				return fmt.Errorf("unpack pages: %w", err)
			}
		}
		out, err := u.zstd.DecodeAll(src, dst[:0:len(dst)])
		if err != nil {
			return fmt.Errorf("unpack pages: %w: %w", ErrProtocol, err)
		}
		n = len(out)
	}
	if n != len(dst) {
		return fmt.Errorf("unpack pages: %w: packing %d holds %d bytes where %d are expected", ErrProtocol, how, n, len(dst))
	}
	return nil
}

func (u *unpacker) close() {
	if u.zstd != nil {
		u.zstd.Close()
	}
}
