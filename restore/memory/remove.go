//go:build !seeded_remove

package memory

// removed notes that pages were thrown away: what the source has of them must not come any more. It gives how many were missing.
func (m *mm) removed(start, end uint64) int { return m.drop(m.lay.parts(start, end)) }
