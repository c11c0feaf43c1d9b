package memory

import (
	"strconv"
	"testing"
)

// instant answers each want at once from bytes that are there already: what is left is the engine's work.
type instant struct {
	wants chan Want
	e     *Engine
}

func (i instant) Ask(w Want) error { i.wants <- w; return nil }

func (i instant) run(done chan struct{}) {
	defer close(done)
	data := make([]byte, 64*pageSize)
	for j := range data {
		data[j] = byte(j) | 1
	}
	for w := range i.wants {
		_ = i.e.Brought(w.ID, []Run{{Data, w.Pages}}, data[:int(w.Pages)*pageSize])
	}
}

// BenchmarkDrain is the speed of the bulk without a network or a source.
func BenchmarkDrain(b *testing.B) {
	const pages = 64 << 10 // 256 MB
	b.SetBytes(pages * pageSize)
	for b.Loop() {
		b.StopTimer()
		w := startWork(b, "hold", strconv.Itoa(pages))
		e := engineFor(b, w, Options{})
		i := instant{make(chan Want, 1024), e}
		done := make(chan struct{})
		go i.run(done)
		e.SetBringer(i)
		w.go1()
		w.await("held")
		b.StartTimer()
		e.StartBulk()
		waitDrained(b, e)
		b.StopTimer()
		w.go1()
		w.wait()
		close(i.wants)
		<-done
		b.StartTimer()
	}
}
