//go:build !seeded_append

package remotefs

// asked finds a request that has come before: its answer was lost, and is given again. n.mu is held.
func (n *session) asked(id uint64) *keptAnswer { return n.kept[id] }
