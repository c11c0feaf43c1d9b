package main

import (
	"errors"
	"testing"

	"github.com/lazymig/lazymig/migrate"
)

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{"bogus"},
		{"migrate"},
		{"migrate", "--pid", "5"},
		{"migrate", "--pid", "5", "--to", "nowhere"},
		{"migrate", "--pid", "five", "--to", "b:1"},
		{"migrate", "--pid", "0", "--to", "b:1"},
		{"migrate", "--pid", "5", "--to", "b:1", "--until", "later"},
		{"migrate", "--pid", "5", "--to", "b:1", "--stdio", "somewhere"},
		{"migrate", "--pid", "5", "--to", "b:1", "extra"},
		{"migrate", "--unknown"},
		{"agent"},
		{"status"},
		{"status", "12"},
		{"abort", "zz"},
		{"forget"},
		{"keys", "host", "dir"},
		{"keys", "init"},
		{"keys", "init", "a", "b"},
		{"keys", "bogus"},
		{"lab", "exec", "A"},
		{"lab", "exec", "C", "--", "true"},
		{"lab", "bogus"},
		{"help", "bogus"},
		{"migrate", "--to", "b:1"},
		{"migrate", "--pid", "5", "--to", "b:"},
		{"agent", "--listen", "nowhere"},
		{"check", "--to", "b"},
		{"check", "--to", ""},
		{"check", "--pid", "-1"},
		{"list", "extra"},
	} {
		if err := newApp().Run(append([]string{"lazymig"}, args...)); err == nil || exitCode(err) != exitUsage {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestFailureCodes(t *testing.T) {
	for _, c := range []struct {
		e    migrate.Event
		code int
	}{
		{migrate.Event{Stage: "preflight", SourceState: "running"}, exitPreflight},
		{migrate.Event{Stage: "restore", SourceState: "running"}, exitRunning},
		{migrate.Event{Stage: "drain", SourceState: "frozen"}, exitHanded},
	} {
		var e *exitErr
		if err := failure(c.e); !errors.As(err, &e) || e.code != c.code {
			t.Errorf("%+v: %v", c.e, err)
		}
	}
}
