package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrShort says that a message ended before its last field; ErrLong that a field or a message is longer than allowed.
var (
	ErrShort = errors.New("message too short")
	ErrLong  = errors.New("message or field too long")
)

// Encoder appends fields to B, big endian.
type Encoder struct{ B []byte }

// U8 appends a byte.
func (e *Encoder) U8(v uint8) { e.B = append(e.B, v) }

// U16 appends 2 bytes.
func (e *Encoder) U16(v uint16) { e.B = binary.BigEndian.AppendUint16(e.B, v) }

// U32 appends 4 bytes.
func (e *Encoder) U32(v uint32) { e.B = binary.BigEndian.AppendUint32(e.B, v) }

// U64 appends 8 bytes.
func (e *Encoder) U64(v uint64) { e.B = binary.BigEndian.AppendUint64(e.B, v) }

// I64 appends 8 bytes, two's complement.
func (e *Encoder) I64(v int64) { e.U64(uint64(v)) }

// Bool appends one byte, 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.U8(1)
	} else {
		e.U8(0)
	}
}

// Bytes appends a 32-bit length and the bytes.
func (e *Encoder) Bytes(v []byte) {
	e.U32(uint32(len(v)))
	e.B = append(e.B, v...)
}

// String appends a 32-bit length and the bytes.
func (e *Encoder) String(v string) {
	e.U32(uint32(len(v)))
	e.B = append(e.B, v...)
}

// Decoder takes fields from a payload. The first violation sticks: all later fields are zero and Err tells it,
// so that a caller may decode a whole message and look once. Nothing is copied: slices point into the payload.
type Decoder struct {
	b   []byte
	err error
}

// NewDecoder reads from b, which must not change while what it yields is in use.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

func (d *Decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.b) {
		d.err = ErrShort
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

// U8 takes a byte.
func (d *Decoder) U8() uint8 {
	if v := d.take(1); v != nil {
		return v[0]
	}
	return 0
}

// U16 takes 2 bytes.
func (d *Decoder) U16() uint16 {
	if v := d.take(2); v != nil {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

// U32 takes 4 bytes.
func (d *Decoder) U32() uint32 {
	if v := d.take(4); v != nil {
		return binary.BigEndian.Uint32(v)
	}
	return 0
}

// U64 takes 8 bytes.
func (d *Decoder) U64() uint64 {
	if v := d.take(8); v != nil {
		return binary.BigEndian.Uint64(v)
	}
	return 0
}

// I64 takes 8 bytes.
func (d *Decoder) I64() int64 { return int64(d.U64()) }

// Bool takes one byte, which must be 0 or 1.
func (d *Decoder) Bool() bool {
	v := d.U8()
	if v > 1 && d.err == nil {
		d.err = fmt.Errorf("truth value %d", v)
	}
	return v == 1
}

// Bytes takes a 32-bit length, at most limit, and that many bytes.
func (d *Decoder) Bytes(limit int) []byte {
	n := d.U32()
	if d.err == nil && uint64(n) > uint64(limit) {
		d.err = fmt.Errorf("%d bytes where %d are allowed: %w", n, limit, ErrLong)
	}
	return d.take(int(n))
}

// String is Bytes as a string (copied).
func (d *Decoder) String(limit int) string { return string(d.Bytes(limit)) }

// Count takes a 32-bit count of things that take at least size bytes each: it can't be more than what is left holds.
func (d *Decoder) Count(size int) int {
	n := d.U32()
	if d.err == nil && uint64(n)*uint64(size) > uint64(len(d.b)) {
		d.err = fmt.Errorf("%d items in %d bytes: %w", n, len(d.b), ErrShort)
	}
	if d.err != nil {
		return 0
	}
	return int(n)
}

// Rest takes all that is left.
func (d *Decoder) Rest() []byte { return d.take(len(d.b)) }

// Len is how many bytes are left.
func (d *Decoder) Len() int { return len(d.b) }

// Err is the first violation, without a look at what is left.
func (d *Decoder) Err() error { return d.err }

// End is the first violation, or ErrLong if bytes are left.
func (d *Decoder) End() error {
	if d.err == nil && len(d.b) != 0 {
		return fmt.Errorf("%d bytes after the last field: %w", len(d.b), ErrLong)
	}
	return d.err
}
