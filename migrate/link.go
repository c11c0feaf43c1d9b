package migrate

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/wire"
)

const (
	dialTimeout  = 10 * time.Second
	helloTimeout = 10 * time.Second
)

// dialer reaches one agent.
type dialer struct {
	addr  string
	keys  *keys.Keys
	id    wire.ID
	token wire.Token

	cleartext bool        // is wanted
	clear     atomic.Bool // and the agent takes it, as it said on the last control connection
}

// clearLanes says whether pages and files go without TLS.
func (d *dialer) clearLanes() bool { return d.clear.Load() }

// dial opens a lane: preamble, TLS, hello.
func (d *dialer) dial(ctx context.Context, lane wire.Lane) (*wire.Conn, error) {
	host, _, err := net.SplitHostPort(d.addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", d.addr, err)
	}
	cfg, err := d.keys.Client(host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, fmt.Errorf("dial %v lane of agent: %w", lane, err)
	}
	if err := wire.NoticeSilence(nc.(*net.TCPConn)); err != nil {
		nc.Close()
		return nil, fmt.Errorf("dial %v lane of agent: %w", lane, err)
	}
	greet := d.greet
	if lane != wire.LaneControl && d.clearLanes() {
		greet = d.greetClear
	}
	c, err := greet(ctx, nc, cfg, lane)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open %v lane of agent %s: %w", lane, d.addr, err)
	}
	return c, nil
}

func (d *dialer) greet(ctx context.Context, nc net.Conn, cfg *tls.Config, lane wire.Lane) (*wire.Conn, error) {
	_ = nc.SetDeadline(time.Now().Add(helloTimeout))
	if _, err := (wire.Preamble{Lane: lane, ID: d.id}).WriteTo(nc); err != nil {
		return nil, err
	}
	tc := tls.Client(wire.Buffer(nc), cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c := wire.NewConn(tc)
	mine := wire.Hello{Lane: lane, ID: d.id}
	if lane != wire.LaneControl {
		mine.Token = d.token
	}
	peer, err := wire.DialHello(c, mine)
	if err != nil {
		return nil, err
	}
	if lane == wire.LaneControl {
		d.clear.Store(d.cleartext && peer.Features&wire.FeatureCleartext != 0)
	}
	_ = nc.SetDeadline(time.Time{})
	return c, nil
}

// greetClear is greet without TLS.
func (d *dialer) greetClear(_ context.Context, nc net.Conn, _ *tls.Config, lane wire.Lane) (*wire.Conn, error) {
	_ = nc.SetDeadline(time.Now().Add(helloTimeout))
	p := wire.Preamble{Lane: lane, Clear: true, ID: d.id}
	if _, err := p.WriteTo(nc); err != nil {
		return nil, err
	}
	c, err := wire.DialClear(nc, p, d.token)
	if err != nil {
		return nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	return c, nil
}

// accept is the other end of greet, for the process that serves the lane; the preamble has been read.
func accept(nc net.Conn, cfg *tls.Config, mine wire.Hello) (*wire.Conn, *tls.Conn, error) {
	return acceptWithin(helloTimeout, nc, cfg, mine)
}

func acceptWithin(limit time.Duration, nc net.Conn, cfg *tls.Config, mine wire.Hello) (*wire.Conn, *tls.Conn, error) {
	_ = nc.SetDeadline(time.Now().Add(limit))
	tc := tls.Server(wire.Buffer(nc), cfg)
	c := wire.NewConn(tc)
	if err := tc.Handshake(); err != nil {
		return nil, nil, err
	}
	if _, err := wire.AcceptHello(c, mine); err != nil {
		return nil, nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	return c, tc, nil
}
