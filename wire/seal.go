package wire

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A sealed lane: what goes over it after the hello is encrypted under keys that both sides derive from their TLS session (RFC 8446, 7.5), by records of our
// own in place of TLS's, which hold 16 KB and cost three more copies of each byte. Here a record is encrypted from where its bytes lie
// and decrypted to where they belong.
//
//	0        4
//	┌────────┬──────────────────────────┬──────────┐
//	│ length │ up to 64 KB, AES-128-GCM │ tag (16) │
//	└────────┴──────────────────────────┴──────────┘
//	length counts what follows it and is authenticated. The nonce is the direction's, XOR the record's number.
//
// As with TLS a record that was changed, left out, repeated or moved ends the connection.
const (
	sealLabel  = "EXPORTER-lazymig-sealed-lane"
	sealKey    = 16
	sealNonce  = 12
	sealTag    = 16
	sealHead   = 4
	sealMost   = 64 << 10
	sealGather = 16 << 10 // parts below this are put together
	sealOut    = 2 * (sealHead + sealMost + sealTag)
	sealRoom   = 4 * (sealHead + sealMost + sealTag)
)

var errSeal = errors.New("a record of the peer is not what it sent")

// direction is one direction's cipher.
type direction struct {
	aead cipher.AEAD
	base [sealNonce]byte
	n    uint64 // of the next record
}

func newDirection(material []byte) (d direction, err error) {
	block, err := aes.NewCipher(material[:sealKey])
	if err == nil {
		d.aead, err = cipher.NewGCM(block)
	}
	copy(d.base[:], material[sealKey:])
	return d, err
}

func (d *direction) nonce() (n [sealNonce]byte) {
	n = d.base
	b := n[sealNonce-8:]
	binary.BigEndian.PutUint64(b, binary.BigEndian.Uint64(b)^d.n)
	d.n++
	return n
}

// sealed reads and writes a lane's records.
type sealed struct {
	*below

	read direction // the reader's, as what follows
	room []byte
	raw  []byte // in room: not decrypted yet
	in   []byte // in room: decrypted and not asked for

	write direction // under Conn.mu, as what follows
	plain []byte
	out   []byte
}

// canSeal says whether the connection can go on without TLS's own records.
func (c *Conn) canSeal(l Lane) bool {
	_, ok := c.nc.(*tls.Conn)
	return ok && c.w != nil && l != LaneControl
}

// seal is after the last record of TLS in both directions, and before any other goroutine uses c.
func (c *Conn) seal(h Hello, dials bool) error {
	if c.r.Buffered() > 0 {
		return fmt.Errorf("seal %v: the peer says more before the seal", h.Lane)
	}
	state := c.nc.(*tls.Conn).ConnectionState()
	const each = sealKey + sealNonce
	m, err := state.ExportKeyingMaterial(sealLabel, append([]byte{byte(h.Lane)}, h.ID[:]...), 2*each)
	if err != nil {
		return fmt.Errorf("seal %v: %w", h.Lane, err)
	}
	from, to := m[:each], m[each:] // who dials comes first
	if !dials {
		from, to = to, from
	}
	s := &sealed{below: &c.w.below, room: make([]byte, sealRoom), out: make([]byte, 0, sealOut)}
	if s.write, err = newDirection(from); err == nil {
		s.read, err = newDirection(to)
	}
	if err != nil {
		return fmt.Errorf("seal %v: %w", h.Lane, err)
	}
	s.raw = s.room[:copy(s.room, c.w.in)] // buffered gives TLS no more than whole records
	c.nc, c.w, c.sealed = s.below, nil, s
	c.r.Reset(s)
	return nil
}

// send writes a frame. Conn.mu is held.
func (s *sealed) send(h Header, parts [][]byte) error {
	s.plain = append(s.plain[:0], make([]byte, HeaderSize)...)
	h.Put(s.plain)
	for _, p := range parts {
		if len(p) < sealGather && len(s.plain)+len(p) <= sealMost {
			s.plain = append(s.plain, p...)
			continue
		}
		if err := s.put(s.plain); err != nil {
			return err
		}
		s.plain = s.plain[:0]
		if err := s.put(p); err != nil {
			return err
		}
	}
	if err := s.put(s.plain); err != nil {
		return err
	}
	return s.flush()
}

// put encrypts b, in as many records as it takes.
func (s *sealed) put(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), sealMost)
		if len(s.out)+sealHead+n+sealTag > cap(s.out) {
			if err := s.flush(); err != nil {
				return err
			}
		}
		at := len(s.out)
		s.out = binary.BigEndian.AppendUint32(s.out, uint32(n+sealTag))
		nonce := s.write.nonce()
		s.out = s.write.aead.Seal(s.out, nonce[:], b[:n], s.out[at:])
		b = b[n:]
	}
	return nil
}

func (s *sealed) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	_, err := s.Write(s.out)
	s.out = s.out[:0]
	return err
}

// Read decrypts straight into p where a record fits.
func (s *sealed) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		head, body, err := s.next()
		if err != nil {
			return 0, err
		}
		to := body // in place
		if len(p) >= len(body)-sealTag {
			to = p
		}
		nonce := s.read.nonce()
		b, err := s.read.aead.Open(to[:0], nonce[:], body, head)
		if err != nil {
			return 0, errSeal
		}
		if len(p) >= len(b) {
			return len(b), nil
		}
		s.in = b
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	return n, nil
}

// next takes a whole record from the socket. It lies in room until the next call.
func (s *sealed) next() (head, body []byte, err error) {
	if err := s.have(sealHead); err != nil {
		return nil, nil, err
	}
	n := int(binary.BigEndian.Uint32(s.raw))
	if n <= sealTag || n > sealMost+sealTag {
		return nil, nil, fmt.Errorf("record of %d bytes: %w", n, ErrLong)
	}
	if err := s.have(sealHead + n); err != nil {
		return nil, nil, err
	}
	head, body = s.raw[:sealHead:sealHead], s.raw[sealHead:sealHead+n:sealHead+n]
	s.raw = s.raw[sealHead+n:]
	return head, body, nil
}

// have reads until raw holds n bytes.
func (s *sealed) have(n int) error {
	for len(s.raw) < n {
		if len(s.raw) == 0 || cap(s.raw) < n {
			s.raw = s.room[:copy(s.room, s.raw)]
		}
		got, err := s.Conn.Read(s.raw[len(s.raw):cap(s.raw)])
		s.raw = s.raw[:len(s.raw)+got]
		if errors.Is(err, io.EOF) && len(s.raw) > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && len(s.raw) < n {
			return err
		}
	}
	return nil
}
