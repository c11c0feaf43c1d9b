package migrate

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lazymig/lazymig/hot"
	"github.com/lazymig/lazymig/restore/memory"
)

// TestHotMessage: a list arrives as it was sent, in its order, in several messages, and what can't be an entry is refused.
func TestHotMessage(t *testing.T) {
	spans := []hot.Span{{Task: 7, Addr: 9 * wordBytes, Words: 1, Mask: 1 << 63}, {Task: 7, Addr: 0, Words: 3, Mask: ^uint64(0)}, {Task: 2, Addr: wordBytes, Words: 1, Mask: 5}}
	var got []memory.HotPages
	for _, l := range [][]hot.Span{spans[:2], spans[2:]} {
		var err error
		if got, err = takeHot(got, encodeHot(l)); err != nil {
			t.Fatal(err)
		}
	}
	var want []memory.HotPages
	for _, s := range spans {
		want = append(want, memory.HotPages{Task: s.Task, Words: s.Words, Addr: s.Addr, Mask: s.Mask})
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v instead of %v", got, want)
	}
	// The bytes are those of PROTOCOL.md.
	if b := fmt.Sprintf("%x", encodeHot(spans[2:])); b != "00000001"+"00000002"+"0000000000040000"+"00000001"+"0000000000000005" {
		t.Errorf("payload %s", b)
	}
	for name, s := range map[string]hot.Span{
		"no words": {Addr: 0, Mask: 1}, "no pages": {Words: 1}, "not a word's address": {Addr: pageSize, Words: 1, Mask: 1}, "beyond all memory": {Addr: 1 << 60, Words: 1, Mask: 1},
	} {
		if _, err := takeHot(nil, encodeHot([]hot.Span{s})); !errors.Is(err, errHot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := takeHot(make([]memory.HotPages, memory.MaxHot), encodeHot(spans[:1])); !errors.Is(err, errHot) {
		t.Errorf("too many: %v", err)
	}
	if _, err := takeHot(nil, encodeHot(spans)[:20]); err == nil {
		t.Error("half an entry is taken")
	}
}

func TestHotTime(t *testing.T) {
	for mb, want := range map[uint64]time.Duration{64: leastHotTime, 512: 500 * time.Millisecond, 8 << 10: mostHotTime} {
		if d := hotTime(mb << 20); d != want {
			t.Errorf("%d MB: %v instead of %v", mb, d, want)
		}
	}
}
