package lazyfs

// What changes names or attributes, for dirNames.

// begins makes void what is known of the names, their directories and the nodes.
func (x *dirNames) begins(c *change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range c.names {
		x.beginLocked(k)
		d := x.dirs[k.dir]
		if d == nil || d.names == nil {
			continue
		}
		if n := d.names[k.name]; n != nil {
			x.giveBackLocked(n)
			delete(d.names, k.name)
			x.count--
		}
		x.unsureLocked(d, k.name)
	}
	for _, node := range append(c.dirs(), c.nodes...) {
		x.beginLocked(node)
		if k, ok := x.owner[node]; ok {
			x.giveBackLocked(x.dirs[k.dir].names[k.name])
		}
	}
}

func (x *dirNames) ended(c *change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, node := range append(c.dirs(), c.nodes...) {
		x.endLocked(node)
	}
	for _, k := range c.names {
		x.endLocked(k)
	}
}

func (x *dirNames) beginLocked(key any) {
	x.changing[key]++
	for f := range x.fetches {
		f.touched[key] = struct{}{}
	}
}

func (x *dirNames) endLocked(key any) {
	if x.changing[key]--; x.changing[key] == 0 {
		delete(x.changing, key)
	}
}
