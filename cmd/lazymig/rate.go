package main

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/wire"
)

// minRate lets one request of a process through in a second.
const minRate = 64 << 10

// parseRate reads bytes a second; empty: 0, no limit.
func parseRate(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	num, shift := s, 0
	if i := strings.IndexByte("KMG", s[len(s)-1]); i >= 0 {
		num, shift = s[:len(s)-1], 10*(i+1)
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil {
		return 0, errors.New("a number, with K, M or G behind it or nothing")
	}
	if f *= float64(uint64(1) << shift); !(f >= minRate) || f > math.MaxInt64/2 {
		return 0, errors.New("64K is the least")
	}
	return uint64(f), nil
}

// parseConnections reads how many connections memory is pushed over.
func parseConnections(s string) (int, error) {
	if s == "auto" {
		return migrate.AutoConnections, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > wire.MaxBulk {
		return 0, errors.New("a number of connections, or auto")
	}
	return n, nil
}
