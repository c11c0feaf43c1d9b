package pagesrv

import (
	"fmt"
	"testing"

	"github.com/lazymig/lazymig/wire"
)

// BenchmarkBulk moves 256 MB over loopback in a window of requests, as the drain does.
func BenchmarkBulk(b *testing.B) {
	p := start(b, "256")
	a := p.area(b, "big")
	for _, window := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			s := newServer(b, Task{uint32(p.pid), p.pid})
			c := newClient(b)
			attach(b, s, c, wire.LaneBulk)
			slots := make(chan []byte, window)
			for range window {
				slots <- make([]byte, MaxPages*PageSize)
			}
			b.SetBytes(MaxPages * PageSize)
			b.ReportAllocs()
			at := uint32(0)
			for b.Loop() {
				dst := <-slots
				err := c.Fetch(wire.LaneBulk, Request{uint32(p.pid), a.start + uint64(at)*PageSize, MaxPages}, dst, func(_ Reply, err error) {
					if err != nil {
						b.Error(err)
					}
					slots <- dst
				})
				if err != nil {
					b.Fatal(err)
				}
				at = (at + MaxPages) % a.pages
			}
			for range window {
				<-slots
			}
		})
	}
}

// BenchmarkUrgent is one fault after the other: 1 and 16 pages, and pages that are absent, for which the task's life has to be shown.
func BenchmarkUrgent(b *testing.B) {
	p := start(b, "64")
	for _, x := range []struct {
		area  string
		pages uint32
	}{{"big", 1}, {"big", 16}, {"untouched", 1}, {"untouched", 64}} {
		b.Run(fmt.Sprintf("%s/pages=%d", x.area, x.pages), func(b *testing.B) {
			a := p.area(b, x.area)
			s := newServer(b, Task{uint32(p.pid), p.pid})
			c := newClient(b)
			attach(b, s, c, wire.LaneUrgent)
			dst, done := make([]byte, MaxPages*PageSize), make(chan error, 1)
			b.ReportAllocs()
			at := uint32(0)
			for b.Loop() {
				if err := c.Fetch(wire.LaneUrgent, Request{uint32(p.pid), a.start + uint64(at)*PageSize, x.pages}, dst, func(_ Reply, err error) { done <- err }); err != nil {
					b.Fatal(err)
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				if at += x.pages; at+x.pages > a.pages {
					at = 0
				}
			}
		})
	}
}
