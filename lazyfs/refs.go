package lazyfs

// ref settles lookups of a node of the source with the server, where names of the overlay hang on it.
type ref struct {
	pins  int    // names in it or leading to it
	extra uint64 // lookups that the kernel counts and the server does not: those of the overlay's names
	owed  uint64 // lookups that the kernel has forgotten while it was pinned
}

func (o *overlay) refLocked(node uint64) *ref {
	r := o.refs[node]
	if r == nil {
		r = &ref{}
		o.refs[node] = r
	}
	return r
}

func (o *overlay) pinLocked(node uint64) {
	if !isLocal(node) {
		o.refLocked(node).pins++
	}
}

func (o *overlay) unpin(node uint64) {
	if isLocal(node) {
		return
	}
	o.mu.Lock()
	r := o.refLocked(node)
	r.pins--
	var owed uint64
	if r.pins == 0 {
		owed, r.owed = r.owed, 0
		if r.extra == 0 {
			delete(o.refs, node)
		}
	}
	o.mu.Unlock()
	if owed > 0 {
		o.f.forgets.add(node, owed)
	}
}

// extra counts a lookup that the server does not know.
func (o *overlay) extra(node uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.refLocked(node).extra++
	o.keptNames = false
}

// keep takes n forgotten lookups and tells how many of them the server must be told now.
func (o *overlay) keep(node, n uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.refs[node]
	if r == nil {
		return n
	}
	x := min(r.extra, n)
	r.extra -= x
	n -= x
	if r.pins > 0 {
		r.owed += n
		return 0
	}
	if r.extra == 0 {
		delete(o.refs, node)
	}
	return n
}
