package pagesrv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/keys"
	"github.com/lazymig/lazymig/wire"
)

// lanePair is a connection as the two hosts have it.
func lanePair(b *testing.B, how string) (server, client *wire.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	if how == "clear" {
		return wire.NewClear(near), wire.NewClear(far)
	}
	dir := filepath.Join(b.TempDir(), "keys")
	if err := errors.Join(keys.Init(dir), keys.Host(dir, "127.0.0.1")); err != nil {
		b.Fatal(err)
	}
	k, err := keys.Load(dir)
	if err != nil {
		b.Fatal(err)
	}
	cfg, err := k.Client("127.0.0.1")
	if err != nil {
		b.Fatal(err)
	}
	s, c := tls.Client(wire.Buffer(near), cfg), tls.Server(wire.Buffer(far), k.Server())
	said := make(chan error, 1)
	go func() { said <- s.Handshake() }()
	if err := errors.Join(c.Handshake(), <-said); err != nil {
		b.Fatal(err)
	}
	server, client = wire.NewConn(s), wire.NewConn(c)
	if how == "sealed" {
		h := wire.Hello{Lane: wire.LaneBulk}
		go func() {
			_, err := wire.DialHello(server, h)
			said <- err
		}()
		_, err := wire.AcceptHello(client, h)
		if err := errors.Join(err, <-said); err != nil {
			b.Fatal(err)
		}
	}
	return server, client
}

func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// BenchmarkLanes is what 8 MB in flight cost on both hosts together, by the size of a request, without what fills the memory.
func BenchmarkLanes(b *testing.B) {
	p := start(b, "256")
	a := p.area(b, "big")
	for _, how := range []string{"tls", "sealed", "clear"} {
		for _, pages := range []uint32{64, 256} {
			b.Run(fmt.Sprintf("%s/pages=%d", how, pages), func(b *testing.B) {
				s := newServer(b, Task{uint32(p.pid), p.pid})
				c := newClient(b)
				server, client := lanePair(b, how)
				go func() { _ = s.Serve(context.Background(), server, wire.LaneBulk) }()
				c.Attach(wire.LaneBulk, client)
				window := 8 * MaxPages / int(pages)
				slots := make(chan []byte, window)
				for range window {
					slots <- make([]byte, MaxPages*PageSize)
				}
				b.SetBytes(int64(pages) * PageSize)
				at, before := uint32(0), cpuSeconds(b)
				for b.Loop() {
					dst := <-slots
					err := c.Fetch(wire.LaneBulk, Request{uint32(p.pid), a.start + uint64(at)*PageSize, pages}, dst, func(_ Reply, err error) {
						if err != nil {
							b.Error(err)
						}
						slots <- dst
					})
					if err != nil {
						b.Fatal(err)
					}
					at = (at + pages) % a.pages
				}
				for range window {
					<-slots
				}
				b.ReportMetric((cpuSeconds(b)-before)/(float64(b.N)*float64(pages)*PageSize/1e9), "cpu-s/GB")
			})
		}
	}
}
