package main

import (
	"crypto/tls"
	"errors"
	"net"

	"github.com/lazymig/lazymig/keys"
)

// Both ends of a connection are those of a migration: TLS 1.3, with the keys of the run.

// clientOf is for who dials the host called name, with the keys in dir.
func clientOf(dir, name string) (*tls.Config, error) {
	k, err := keys.Load(dir)
	if err != nil {
		return nil, err
	}
	return k.Client(name)
}

// serverEnd returns when both sides know each other: nothing may be sent before, a frame would hold the handshake back.
func serverEnd(c net.Conn, k *keys.Keys) (*tls.Conn, error) { return shake(tls.Server(c, k.Server())) }

// clientEnd is the other side of serverEnd.
func clientEnd(c net.Conn, cfg *tls.Config) (*tls.Conn, error) { return shake(tls.Client(c, cfg)) }

func shake(c *tls.Conn) (*tls.Conn, error) {
	if err := c.Handshake(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}
