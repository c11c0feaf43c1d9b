package wire

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A clear lane: no TLS, for links that are encrypted already. Who is at the other end is still proven, once, before the first frame: each
// side answers a number that the other has just made up for this connection with a MAC under the migration's token, which itself only ever went
// through TLS. So an answer is good for one connection and as long as its beginning may take; what was recorded is of no use, and
// neither is what was made for another lane or migration. What comes after that is protected by nothing: whoever is on the path can read and change it.
//
//	source                             agent
//	  Preamble, Clear ───────────────►
//	  ◄──────────────── challenge (32)   fresh
//	  challenge (32), MAC (32) ───────►  wrong: the end, without a word
//	  ◄────────────────────── MAC (32)
const challengeSize = 32

type challenge [challengeSize]byte

// ErrProof says that the peer of a clear lane does not know the migration's token.
var ErrProof = errors.New("the peer does not prove that it belongs to the migration")

// Who says a MAC is part of what it is made of, so that none can be sent back to its maker.
const (
	sourceProof = "lazymig 1 clear lane: source\x00"
	agentProof  = "lazymig 1 clear lane: agent\x00"
)

func (p Preamble) proof(token Token, who string, agents, sources challenge) []byte {
	m := hmac.New(sha256.New, token[:])
	b := p.bytes()
	for _, part := range [][]byte{[]byte(who), b[:], agents[:], sources[:]} {
		m.Write(part)
	}
	return m.Sum(nil)
}

// DialClear is the dialing side's beginning of a clear lane; the preamble p has been written. The caller bounds it by a deadline.
func DialClear(nc net.Conn, p Preamble, token Token) (*Conn, error) {
	var theirs, mine challenge
	if _, err := io.ReadFull(nc, theirs[:]); err != nil {
		return nil, fmt.Errorf("read challenge: %w", err)
	}
	_, _ = rand.Read(mine[:]) // it never fails
	if _, err := nc.Write(append(mine[:], p.proof(token, sourceProof, theirs, mine)...)); err != nil {
		return nil, fmt.Errorf("send proof: %w", err)
	}
	var mac [sha256.Size]byte
	if _, err := io.ReadFull(nc, mac[:]); err != nil {
		return nil, fmt.Errorf("read the agent's proof (it refuses without a word): %w", err)
	}
	if !hmac.Equal(mac[:], p.proof(token, agentProof, theirs, mine)) {
		return nil, ErrProof
	}
	return NewClear(nc), nil
}

// AcceptClear is the accepting side's, whose preamble has been read. When it returns nil the peer has proven itself; frames follow (NewClear).
// If the proof is wrong it is ErrProof, and nothing has been said.
func AcceptClear(nc net.Conn, p Preamble, token Token) error {
	var mine challenge
	_, _ = rand.Read(mine[:]) // it never fails
	if _, err := nc.Write(mine[:]); err != nil {
		return fmt.Errorf("send challenge: %w", err)
	}
	var b [challengeSize + sha256.Size]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return fmt.Errorf("read proof: %w", err)
	}
	theirs := challenge(b[:challengeSize])
	if !hmac.Equal(b[challengeSize:], p.proof(token, sourceProof, mine, theirs)) {
		return ErrProof
	}
	if _, err := nc.Write(p.proof(token, agentProof, mine, theirs)); err != nil {
		return fmt.Errorf("send proof: %w", err)
	}
	return nil
}

// clearRead is how much a clear lane's buffer takes at once: headers, and little of what is to go straight to its place.
const clearRead = 4 << 10

// NewClear is NewConn for a clear lane whose peers know each other.
func NewClear(nc net.Conn) *Conn {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return NewConn(nc)
	}
	c := &below{Conn: t}
	return newConn(c, clearRead)
}

// Refused keeps a connection whose proof was wrong, and says nothing, for as long: attempts are as many as Lobby has places, in each time. It closes nc.
func Refused(nc net.Conn, long time.Duration) {
	var b [512]byte
	if nc.SetReadDeadline(time.Now().Add(long)) == nil {
		for { // what comes is not looked at; Lobby may end this
			if _, err := nc.Read(b[:]); err != nil {
				break
			}
		}
	}
	nc.Close()
}
