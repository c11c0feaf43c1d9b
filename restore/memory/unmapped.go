//go:build !seeded_enoent

package memory

// unmapped is what ENOENT means: no VMA holds the whole range. mprotect and madvise split VMAs without an event, so the pages may be there all the same.
func unmapped(length uint64) outcome {
	if length > pageSize {
		return outcome{act: actHalve}
	}
	return outcome{act: actMissing}
}
