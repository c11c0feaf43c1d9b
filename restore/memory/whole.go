//go:build !seeded_uffd

package memory

// whole says that nothing of the source is missing: m's userfaultfd may be closed, if it can be proven.
func (m *mm) whole() bool { return m.missing == 0 }

// mayClose proves it: with the userfaultfd what is missing would become zeros.
func (e *Engine) mayClose(m *mm) bool { return e.prove(m) }
