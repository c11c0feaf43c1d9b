package main

import (
	"testing"

	"github.com/lazymig/lazymig/migrate"
)

func TestParseRate(t *testing.T) {
	for s, want := range map[string]uint64{"": 0, "65536": 65536, "64K": 65536, "1.5M": 3 << 19, "2G": 2 << 30} {
		if got, err := parseRate(s); err != nil || got != want {
			t.Errorf("%q is %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"0", "K", "-1M", "1T", "1m", "NaN", "Inf", "63K", "1e30G", "0x1p3K"} {
		if got, err := parseRate(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}

func TestParseConnections(t *testing.T) {
	for s, want := range map[string]int{"auto": migrate.AutoConnections, "1": 1, "8": 8} {
		if got, err := parseConnections(s); err != nil || got != want {
			t.Errorf("%q is %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "9", "-1", "two"} {
		if got, err := parseConnections(s); err == nil {
			t.Errorf("%q is %d", s, got)
		}
	}
}
