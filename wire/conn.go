package wire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Header is what stands before each payload.
type Header struct {
	Length uint32 // of the payload, bytes
	Type   Type
	Flags  uint16
	ID     uint64 // of the request; a reply carries the same
}

// Put writes h to b, at least HeaderSize long.
func (h Header) Put(b []byte) {
	binary.BigEndian.PutUint32(b[0:], h.Length)
	binary.BigEndian.PutUint16(b[4:], uint16(h.Type))
	binary.BigEndian.PutUint16(b[6:], h.Flags)
	binary.BigEndian.PutUint64(b[8:], h.ID)
}

// ParseHeader reads a header and checks its length.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, ErrShort
	}
	h := Header{
		Length: binary.BigEndian.Uint32(b[0:]),
		Type:   Type(binary.BigEndian.Uint16(b[4:])),
		Flags:  binary.BigEndian.Uint16(b[6:]),
		ID:     binary.BigEndian.Uint64(b[8:]),
	}
	if h.Length > MaxPayload {
		return h, fmt.Errorf("frame of %d bytes, type %d: %w", h.Length, h.Type, ErrLong)
	}
	return h, nil
}

// Conn reads and writes frames. One goroutine may read; any number may write.
type Conn struct {
	nc net.Conn
	r  *bufio.Reader
	w  *buffered // below TLS; may be nil

	clear *below // nc, if nothing is above it

	mu    sync.Mutex  // one frame at a time
	out   []byte      // under mu
	parts net.Buffers // under mu
}

// NewConn takes over nc.
func NewConn(nc net.Conn) *Conn {
	return newConn(nc, 64<<10)
}

func newConn(nc net.Conn, buffer int) *Conn {
	clear, _ := nc.(*below)
	return &Conn{nc: nc, r: bufio.NewReaderSize(nc, buffer), w: bufferBelow(nc), clear: clear}
}

// Net is the connection below, for deadlines and addresses. Nobody but Conn reads or writes it.
func (c *Conn) Net() net.Conn { return c.nc }

// Close closes the connection; blocked reads and writes end with an error. May be called more than once.
func (c *Conn) Close() error { return c.nc.Close() }

// Cut ends the connection at once: Close would say farewell, and TLS waits up to 5 s for a peer that takes nothing.
func (c *Conn) Cut() error {
	if t, ok := c.nc.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn().Close()
	}
	return c.nc.Close()
}

// Send writes one frame whose payload is the parts one after the other, in as few writes as they allow. It keeps none of them.
func (c *Conn) Send(t Type, flags uint16, id uint64, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	if n > MaxPayload {
		return fmt.Errorf("send frame of %d bytes, type %d: %w", n, t, ErrLong)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clear != nil {
		return c.sendClear(Header{Length: uint32(n), Type: t, Flags: flags, ID: id}, parts)
	}
	if c.w == nil {
		return c.send(t, flags, id, n, parts)
	}
	c.w.cork()
	err := c.send(t, flags, id, n, parts)
	if uerr := c.w.uncork(); err == nil {
		err = uerr
	}
	return err
}

// send writes a frame of n bytes of payload. c.mu is held.
func (c *Conn) send(t Type, flags uint16, id uint64, n int, parts [][]byte) error {
	var h [HeaderSize]byte
	Header{Length: uint32(n), Type: t, Flags: flags, ID: id}.Put(h[:])
	c.out = append(c.out[:0], h[:]...)
	for _, p := range parts {
		if len(c.out)+len(p) > 32<<10 { // large parts are not copied
			if _, err := c.nc.Write(c.out); err != nil {
				return err
			}
			c.out = c.out[:0]
			if len(p) > 16<<10 {
				if _, err := c.nc.Write(p); err != nil {
					return err
				}
				continue
			}
		}
		c.out = append(c.out, p...)
	}
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	return err
}

// sendClear writes a frame without copying it. c.mu is held.
func (c *Conn) sendClear(h Header, parts [][]byte) error {
	c.out = append(c.out[:0], make([]byte, HeaderSize)...)
	h.Put(c.out)
	c.parts = append(c.parts[:0], c.out)
	for _, p := range parts {
		if len(p) > 0 {
			c.parts = append(c.parts, p)
		}
	}
	return c.clear.writev(c.parts)
}

// Buffered says that something has come that was not read yet. The reader asks.
func (c *Conn) Buffered() bool { return c.r.Buffered() > 0 || c.w != nil && len(c.w.in) > 0 }

// ReadHeader reads the next header. Its payload must be read (ReadPayload, or Read as often as it takes) before the next.
func (c *Conn) ReadHeader() (Header, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return Header{}, err
	}
	return ParseHeader(b[:])
}

// ReadPayload reads the payload of h into buf if it fits, else into a new slice.
func (c *Conn) ReadPayload(h Header, buf []byte) ([]byte, error) {
	if cap(buf) < int(h.Length) {
		buf = make([]byte, h.Length)
	}
	buf = buf[:h.Length]
	if err := c.ReadFull(buf); err != nil {
		return nil, err
	}
	return buf, nil
}

// ReadFull reads a piece of a payload straight to where it belongs.
func (c *Conn) ReadFull(b []byte) error {
	_, err := io.ReadFull(c.r, b)
	if err == io.EOF && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Recv is ReadHeader and ReadPayload into a new slice.
func (c *Conn) Recv() (Header, []byte, error) {
	h, err := c.ReadHeader()
	if err != nil {
		return h, nil, err
	}
	p, err := c.ReadPayload(h, nil)
	return h, p, err
}

// SetDeadline bounds all reads and writes from now on; zero takes the bound away.
func (c *Conn) SetDeadline(t time.Time) error { return c.nc.SetDeadline(t) }
