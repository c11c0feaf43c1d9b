//go:build seeded_remove

package memory

// A bug for `make test-seeded`: a REMOVE event is lost.

func (*mm) removed(_, _ uint64) int { return 0 }
