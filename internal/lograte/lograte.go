// Package lograte bounds how fast log lines are written: what a peer does again and again, with or without a certificate, must not fill a disk.
//
// Each message (its fixed text; attributes do not count) may come burst times at once and then rate times a second. What is left out is counted,
// and told with the next line of that message that comes through. Debug lines are not bounded: who asks for them wants all.
package lograte

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	burst   = 50
	rate    = 5    // a second
	maxKeys = 1024 // messages are constants of the program; this bounds a mistake
)

// Handler passes on to another what is not too much. Handlers made of it by WithAttrs and WithGroup share its bounds.
type Handler struct {
	slog.Handler
	state *state
}

type state struct {
	now func() time.Time

	mu   sync.Mutex
	keys map[string]*bucket
}

type bucket struct {
	left    float64
	at      time.Time
	dropped int
}

// New bounds what h gets.
func New(h slog.Handler) *Handler {
	return &Handler{h, &state{now: time.Now, keys: map[string]*bucket{}}}
}

// Handle implements slog.Handler.
func (h *Handler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level > slog.LevelDebug {
		dropped, ok := h.state.take(r.Message)
		if !ok {
			return nil
		}
		if dropped > 0 {
			r = r.Clone()
			r.AddAttrs(slog.Int("left_out", dropped))
		}
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(a []slog.Attr) slog.Handler {
	return &Handler{h.Handler.WithAttrs(a), h.state}
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.Handler.WithGroup(name), h.state}
}

// take says whether a line of that text may be written, and how many were not since the last one.
func (s *state) take(text string) (dropped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	b := s.keys[text]
	if b == nil {
		if len(s.keys) >= maxKeys {
			text = "" // all the others together
		}
		if b = s.keys[text]; b == nil {
			b = &bucket{left: burst, at: now}
			s.keys[text] = b
		}
	}
	b.left = min(burst, b.left+rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.left < 1 {
		b.dropped++
		return 0, false
	}
	b.left--
	dropped, b.dropped = b.dropped, 0
	return dropped, true
}
