package lazyfs

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// readBuffers are buffers for the kernel's requests whose pages are there. Where one is missing, a daemon that is being killed can't fault it
// in, and the kernel fails the request that it is just handing over, with EIO (fs/fuse/dev.c: fuse_dev_do_read, fuse_copy_fill;
// mm/gup.c: __get_user_pages gives up with a fatal signal). TestModelKilled sees that. Replies are sent from memory that was just written.
type readBuffers struct {
	mu   sync.Mutex
	free [][]byte
}

const maxFreeBuffers = 32

func (p *readBuffers) get() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b, nil
	}
	b, err := unix.Mmap(-1, 0, readSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map buffer for requests: %w", err)
	}
	_ = unix.Madvise(b, unix.MADV_NOHUGEPAGE) // a page on its way into a huge one is missing, too
	if unix.Mlock(b) != nil {                 // not allowed: the pages are there until memory gets short
		for i := 0; i < len(b); i += 4096 {
			b[i] = 0
		}
	}
	return b, nil
}

func (p *readBuffers) put(b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < maxFreeBuffers {
		p.free = append(p.free, b)
		return
	}
	_ = unix.Munmap(b) // mapped by get
}
