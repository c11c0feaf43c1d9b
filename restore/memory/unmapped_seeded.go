//go:build seeded_enoent

package memory

// A bug for `make test-seeded`: ENOENT is taken as gone.

func unmapped(length uint64) outcome { return outcome{actDone, length} }
