package remotefs

import (
	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/wire"
)

// Which parts of a file are sent ahead of a restore (seed.go).

const (
	maxSeedFile = 256 << 20                          // a larger one is not looked at page by page
	seedChunk   = 64 << 10                           // pages are told in pieces of this
	seedAround  = wire.FileReadAhead / 2 / seedChunk // and those around them: the target's kernel reads as much around a page
)

// worth are the parts of a file to be sent ahead: first those around ranges, which are read for sure, then those of which a page is in memory.
func (t *telling) worth(n *node, size uint64, ranges []wire.FileRange) []wire.FileRange {
	if size == 0 || size > maxSeedFile {
		return nil
	}
	sure, resident := make([]bool, (size+seedChunk-1)/seedChunk), make([]bool, (size+seedChunk-1)/seedChunk)
	for _, r := range ranges {
		if r.Len == 0 || r.Off >= size {
			continue
		}
		first, last := int(r.Off/seedChunk), int((r.Off+min(r.Len, size-r.Off)-1)/seedChunk)
		for i := max(0, first-seedAround); i < min(len(sure), last+seedAround+1); i++ {
			sure[i] = true
		}
	}
	if fd, err := t.s.reopen(n.fd, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOATIME); err == nil {
		markResident(fd, int(size), resident) // else the ranges alone
		_ = unix.Close(fd)
	}
	for i, yes := range sure {
		resident[i] = resident[i] && !yes
	}
	return append(joined(sure, size), joined(resident, size)...)
}

// joined are the ranges that chunks make.
func joined(chunks []bool, size uint64) (out []wire.FileRange) {
	for i, yes := range chunks {
		off := uint64(i) * seedChunk
		switch {
		case !yes:
		case len(out) > 0 && out[len(out)-1].Off+out[len(out)-1].Len == off:
			out[len(out)-1].Len += min(seedChunk, size-off)
		default:
			out = append(out, wire.FileRange{Off: off, Len: min(seedChunk, size-off)})
		}
	}
	return out
}

func markResident(fd, size int, chunks []bool) {
	m, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return
	}
	defer func() { _ = unix.Munmap(m) }()
	const page = 4096
	vec := make([]byte, (size+page-1)/page)
	if mincore(m, vec) != nil {
		return
	}
	for i, b := range vec {
		if b&1 != 0 {
			chunks[i*page/seedChunk] = true
		}
	}
}
