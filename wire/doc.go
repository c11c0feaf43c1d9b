// Package wire is the language of the two hosts: one TCP port, four lanes, bounded frames.
//
// # Trust boundary
//
// Everything that is decoded here comes from a peer. The peer has a certificate of the same CA when a frame
// is read (the preamble comes before that and is a routing hint only), but it may be broken or hostile: every
// length, count and enum is checked before it is used, and a violation ends the connection.
//
// # A connection
//
//	source                                   agent
//	  │  Preamble (32 bytes, clear)            │  routes the socket to the process that serves the lane
//	  │  TLS 1.3, both sides with certificate  │
//	  │  Hello ───────────────────────────────►│  version, features, migration ID, lane (again, now authenticated)
//	  │◄─────────────────────────────── Hello  │
//	  │  frames in both directions             │
//
// # A frame
//
//	0        4        6        8               16
//	┌────────┬────────┬────────┬────────────────┬─────────────┐
//	│ length │ type   │ flags  │ request ID     │ payload …   │
//	└────────┴────────┴────────┴────────────────┴─────────────┘
//	length counts the payload only; all numbers are big endian.
//
// Message numbers stand in messages.go, are never reused, and PROTOCOL.md is held to them by a test.
package wire
