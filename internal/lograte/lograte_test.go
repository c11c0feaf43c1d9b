package lograte

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestBounds(t *testing.T) {
	var out bytes.Buffer
	h := New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	now := time.Unix(1000, 0)
	h.state.now = func() time.Time { return now }
	log := slog.New(h)
	for i := range 10 * burst {
		log.With("i", i).WithGroup("g").Warn("often")
		log.Debug("debug")
	}
	log.Warn("seldom")
	if n := strings.Count(out.String(), "msg=often"); n != burst {
		t.Errorf("%d lines of one message", n)
	}
	if strings.Count(out.String(), "msg=debug") != 10*burst || !strings.Contains(out.String(), "msg=seldom") {
		t.Error("other messages were left out")
	}
	out.Reset()
	now = now.Add(2 * time.Second)
	for range burst {
		log.Warn("often")
	}
	if n := strings.Count(out.String(), "msg=often"); n != 2*rate || !strings.Contains(out.String(), fmt.Sprintf("left_out=%d", 9*burst)) {
		t.Errorf("%d lines after two seconds:\n%s", n, out.String())
	}
	for i := range 2 * maxKeys {
		log.Info(fmt.Sprint("made up ", i))
	}
	if n := len(h.state.keys); n > maxKeys+1 {
		t.Errorf("%d messages are remembered", n)
	}
}
