package wire

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// ID names a migration: 16 random bytes, printed as 32 hexadecimal digits.
type ID [16]byte

// NewID makes an ID that no other migration has.
func NewID() ID {
	var id ID
	_, _ = rand.Read(id[:]) // never fails, see crypto/rand
	return id
}

// ParseID reads the printed form.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("migration ID %q is not 32 hexadecimal digits", s)
	}
	copy(id[:], b)
	return id, nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// PreambleSize is the length of what stands, in the clear, before TLS.
const PreambleSize = 32

var magic = [4]byte{'L', 'Z', 'M', 'G'}

// Preamble routes a connection on the agent's port to the process that serves its lane, before TLS begins in
// that process. Nothing is believed of it: Hello says the same again inside TLS, the proof of a clear lane covers it.
type Preamble struct {
	Lane  Lane
	Clear bool // no TLS follows; never on the control lane
	ID    ID
}

func (p Preamble) bytes() (b [PreambleSize]byte) {
	copy(b[:], magic[:])
	b[5] = Version
	b[6] = byte(p.Lane)
	if p.Clear {
		b[7] = 1
	}
	copy(b[8:], p.ID[:])
	return b
}

// WriteTo writes the 32 bytes.
func (p Preamble) WriteTo(w io.Writer) (int64, error) {
	b := p.bytes()
	n, err := w.Write(b[:])
	return int64(n), err
}

// ReadPreamble reads exactly PreambleSize bytes.
func ReadPreamble(r io.Reader) (Preamble, error) {
	var b [PreambleSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Preamble{}, fmt.Errorf("read preamble: %w", err)
	}
	return parsePreamble(b[:])
}

func parsePreamble(b []byte) (Preamble, error) {
	if !bytes.Equal(b[:4], magic[:]) {
		return Preamble{}, fmt.Errorf("peer does not speak lazymig's protocol")
	}
	if v := int(b[4])<<8 | int(b[5]); v != Version {
		return Preamble{}, fmt.Errorf("peer speaks version %d, this is version %d: use the same release on both hosts", v, Version)
	}
	p := Preamble{Lane: Lane(b[6]), Clear: b[7] == 1}
	if !p.Lane.known() || b[7] > 1 {
		return Preamble{}, fmt.Errorf("preamble asks for unknown %v", p.Lane)
	}
	if p.Clear && p.Lane == LaneControl {
		return Preamble{}, errors.New("preamble asks for a control lane without TLS")
	}
	copy(p.ID[:], b[8:24])
	return p, nil
}

// Hello is the first frame in each direction of every connection.
type Hello struct {
	Version  uint16
	Features uint64 // what the sender can do; what both can is used
	Lane     Lane
	ID       ID
	Token    Token // of the migration: binds its lanes to the peer that began it; zero on a control lane
}

// FeatureCleartext is said on the control lane by an agent that takes clear lanes.
const FeatureCleartext uint64 = 1

// Token is a secret of one migration, made by the source and told once, on the control lane.
type Token [32]byte

// Marshal encodes h.
func (h Hello) Marshal() []byte {
	var e Encoder
	e.U16(h.Version)
	e.U64(h.Features)
	e.U8(uint8(h.Lane))
	e.B = append(e.B, h.ID[:]...)
	e.B = append(e.B, h.Token[:]...)
	return e.B
}

// ParseHello decodes what Marshal made.
func ParseHello(b []byte) (Hello, error) {
	d := NewDecoder(b)
	h := Hello{Version: d.U16(), Features: d.U64(), Lane: Lane(d.U8())}
	copy(h.ID[:], d.take(len(h.ID)))
	copy(h.Token[:], d.take(len(h.Token)))
	if err := d.End(); err != nil {
		return Hello{}, fmt.Errorf("decode hello: %w", err)
	}
	return h, nil
}

// DialHello is the dialing side's: it sends mine, token included, and reads the answer.
func DialHello(c *Conn, mine Hello) (Hello, error) {
	mine.Version = Version
	if err := c.Send(MsgHello, 0, 0, mine.Marshal()); err != nil {
		return Hello{}, fmt.Errorf("send hello: %w", err)
	}
	peer, err := readHello(c)
	if err != nil {
		return Hello{}, err
	}
	return peer, peer.matches(mine)
}

// AcceptHello is the accepting side's: it reads the peer's hello, checks it and its token against mine, and only then answers,
// without the token. A peer that does not match is told why.
func AcceptHello(c *Conn, mine Hello) (Hello, error) {
	mine.Version = Version
	peer, err := readHello(c)
	if err != nil {
		return Hello{}, err
	}
	err = peer.matches(mine)
	if err == nil && subtle.ConstantTimeCompare(peer.Token[:], mine.Token[:]) != 1 {
		err = fmt.Errorf("peer does not know the token of migration %v", mine.ID)
	}
	if err != nil {
		_ = c.Send(MsgError, 0, 0, MarshalError(err)) // the connection ends either way
		return peer, err
	}
	mine.Token = Token{}
	if err := c.Send(MsgHello, 0, 0, mine.Marshal()); err != nil {
		return peer, fmt.Errorf("send hello: %w", err)
	}
	return peer, nil
}

func readHello(c *Conn) (Hello, error) {
	h, err := c.ReadHeader()
	if err != nil {
		return Hello{}, fmt.Errorf("read hello: %w", err)
	}
	if h.Length > 2*maxErrorText {
		return Hello{}, fmt.Errorf("read hello: %w", ErrLong)
	}
	p, err := c.ReadPayload(h, nil)
	if err != nil {
		return Hello{}, fmt.Errorf("read hello: %w", err)
	}
	switch h.Type {
	case MsgError:
		return Hello{}, ParseError(p)
	case MsgHello:
		return ParseHello(p)
	}
	return Hello{}, fmt.Errorf("peer began with message %d instead of hello", h.Type)
}

func (h Hello) matches(mine Hello) error {
	if h.Version != Version {
		return fmt.Errorf("peer speaks version %d, this is version %d: use the same release on both hosts", h.Version, Version)
	}
	if h.Lane != mine.Lane || h.ID != mine.ID {
		return fmt.Errorf("peer means %v of %v, this is %v of %v", h.Lane, h.ID, mine.Lane, mine.ID)
	}
	return nil
}

// MarshalText is the printed form, for JSON and logs.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is ParseID.
func (id *ID) UnmarshalText(b []byte) error {
	var err error
	*id, err = ParseID(string(b))
	return err
}
