package remotefs

import (
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Files must be created with the caller's owner, and the kernel must see a caller that loses set-user-ID bits.
// setfsuid, setgroups and umask are per thread (umask after unshare(CLONE_FS)), so a few goroutines are locked to
// threads that nothing else uses, and end with them.

// as is who a piece of work is done as.
type as struct {
	uid, gid uint32
	umask    uint32
	override bool // ignore permission bits, whoever it is: the target's kernel has already decided
	noFsetid bool // lose set-user-ID and set-group-ID bits even as root
	fsetid   bool // keep them, whoever it is: the target's kernel has taken away what is not to be (vfs_prepare_mode, since Linux 6.0), and knows the caller's groups
}

type credJob struct {
	as   as
	fn   func() error
	done chan error
}

type credPool struct {
	jobs chan credJob
	wg   sync.WaitGroup
}

func newCredPool(threads int, groups []uint32) (*credPool, error) {
	p := &credPool{jobs: make(chan credJob)}
	ready := make(chan error, threads)
	for range threads {
		p.wg.Go(func() { p.run(groups, ready) })
	}
	var err error
	for range threads {
		if e := <-ready; e != nil {
			err = e
		}
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *credPool) close() {
	close(p.jobs)
	p.wg.Wait()
}

// do runs fn as a on one of the threads.
func (p *credPool) do(a as, fn func() error) error {
	j := credJob{as: a, fn: fn, done: make(chan error, 1)}
	p.jobs <- j
	return <-j.done
}

type caps [2]unix.CapUserData

func getCaps() (c caps, err error) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err = unix.Capget(&h, &c[0])
	return c, err
}

func setCaps(c caps) error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capset(&h, &c[0])
}

func (p *credPool) run(groups []uint32, ready chan<- error) {
	runtime.LockOSThread()              // never unlocked: the thread ends with the goroutine
	if unix.Gettid() == unix.Getpid() { // the main thread can't end, and is what /proc/self shows: another, while this is held
		var wg sync.WaitGroup
		wg.Go(func() { p.run(groups, ready) })
		wg.Wait()
		runtime.UnlockOSThread()
		return
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		ready <- fmt.Errorf("unshare umask: %w", err)
		return
	}
	if err := setGroups(groups); err != nil {
		ready <- fmt.Errorf("set groups of the tree: %w", err)
		return
	}
	base, err := getCaps()
	if err != nil {
		ready <- fmt.Errorf("read capabilities: %w", err)
		return
	}
	ready <- nil
	for j := range p.jobs {
		err := become(j.as)
		if err == nil {
			err = j.fn()
		}
		_, _ = unix.SetfsuidRetUid(0)
		_, _ = unix.SetfsgidRetGid(0)
		if e := setCaps(base); e != nil && err == nil {
			err = fmt.Errorf("restore capabilities: %w", e)
		}
		j.done <- err
	}
}

// become puts on a's credentials; setfsuid from 0 drops the capabilities that ignore permissions.
func become(a as) error {
	if a.uid == ^uint32(0) { // the kernel writing pages back: nobody in particular
		a.uid = 0
	}
	if a.gid == ^uint32(0) {
		a.gid = 0
	}
	unix.Umask(int(a.umask & 0o777))
	if _, err := unix.SetfsgidRetGid(int(a.gid)); err != nil {
		return fmt.Errorf("setfsgid %d: %w", a.gid, err)
	}
	if _, err := unix.SetfsuidRetUid(int(a.uid)); err != nil {
		return fmt.Errorf("setfsuid %d: %w", a.uid, err)
	}
	if u, _ := unix.SetfsuidRetUid(-1); uint32(u) != a.uid { // it tells failures in no other way
		return fmt.Errorf("setfsuid %d: %w", a.uid, unix.EPERM)
	}
	if g, _ := unix.SetfsgidRetGid(-1); uint32(g) != a.gid {
		return fmt.Errorf("setfsgid %d: %w", a.gid, unix.EPERM)
	}
	if !a.override && !a.noFsetid && !a.fsetid {
		return nil
	}
	c, err := getCaps()
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if a.override {
		c[0].Effective |= c[0].Permitted & (1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH)
	}
	if a.fsetid {
		c[0].Effective |= c[0].Permitted & (1 << unix.CAP_FSETID)
	}
	if a.noFsetid {
		c[0].Effective &^= 1 << unix.CAP_FSETID
	}
	if err := setCaps(c); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}
