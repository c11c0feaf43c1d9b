package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/lazyfs"
	"github.com/lazymig/lazymig/lazyfs/store"
)

// Files that are here: "local" is lazyfs when the store has copies of all that the load uses, and the tree is still on FUSE; "detached" is those copies without it. A load
// runs once before, unmeasured, so that what it opens comes over, as in a migration; the target has nothing of its own, else a program's libraries would be the host's. What a program needs whose root
// that is, and which it has not opened, does not come: such are not measured detached.

const (
	storeArg  = "store"          // of mountFiles: with a store
	storeDir  = "/srv/bench-own" // of B, on the disk
	hereWord  = "here"
	hereTime  = 2 * time.Minute
	settleArg = "settle"
)

// localFiles is lazyfs with a store.
func (b *filesBench) localFiles(ctx context.Context, addr string) (*place, error) {
	return b.lazyfsWith(ctx, addr, storeArg, b.uses)
}

// detachedFiles is localFiles in which the files are settled, and used where they are then.
func (b *filesBench) detachedFiles(ctx context.Context, addr string) (*place, error) {
	p, err := b.localFiles(ctx, addr)
	if err != nil {
		return nil, err
	}
	ready := p.ready
	p.ready = func() error {
		if err := ready(); err != nil {
			return err
		}
		if err := p.daemon.ask(settleArg); err != nil {
			return err
		}
		p.dir = storeDir + "/root"
		out, err := p.host.Command(ctx, "/bin/sh", "-c", "mkdir -p "+p.dir+"/dev && mount --bind /dev "+p.dir+"/dev").CombinedOutput()
		if err != nil {
			return said("mount /dev", err, out)
		}
		end := p.end
		p.end = func() error {
			out, err := p.host.Command(ctx, "umount", storeDir+"/root/dev").CombinedOutput()
			if err != nil {
				err = said("unmount /dev", err, out)
			}
			return errors.Join(err, end())
		}
		return nil
	}
	return p, nil
}

// lazyfsWith mounts A's files on B; what: more arguments of mountFiles.
func (b *filesBench) lazyfsWith(ctx context.Context, addr string, what ...string) (*place, error) {
	server, err := b.serve(ctx, b.lab.A, "serves", serveArg, b.keys, b.lab.A.Addr+":"+filesPort)
	if err != nil {
		return nil, err
	}
	daemon, err := b.serve(ctx, b.lab.B, "mounted", append([]string{mountArg, b.keys, addr, b.lab.A.Addr, mountPoint}, what...)...)
	if err != nil {
		return nil, errors.Join(err, server.end())
	}
	p, err := b.used(ctx, func() error { return errors.Join(daemon.end(), server.end()) })
	if err != nil || len(what) == 0 {
		return p, err
	}
	p.daemon = daemon
	p.ready = func() error { return daemon.ask(hereWord) }
	return p, nil
}

// ask gives a service a command and waits until it says that it is done.
func (s *service) ask(word string) error {
	if _, err := fmt.Fprintln(s.in, word); err != nil {
		return fmt.Errorf("ask for %q: %w", word, err)
	}
	return awaitWord(s.out, word)
}

// uncached makes B's kernel forget the pages of the big file that the load uses, as far as FUSE has them: the copies' own stay. Nothing else is opened: what the tree
// opens comes, and that would be beside what is measured.
func uncached(ctx context.Context, h *lab.Host, b *filesBench, dir string) error {
	if out, err := h.Command(ctx, b.self, forgetArg, filepath.Join(dir+loadDir, b.uses)).CombinedOutput(); err != nil {
		return said("forget pages", err, out)
	}
	return nil
}

// withStore serves the daemon's store until the mount has ended: commands come by standard input.
func withStore(d *lazyfs.Daemon, r store.Remote, with string) error {
	if err := os.RemoveAll(storeDir); err != nil {
		return err
	}
	own := filepath.Join(storeDir, "none")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	s, err := store.New(context.Background(), store.Options{Dir: storeDir, Own: own, Remote: r, Busy: d.Busy, Locals: d.NameLocals, MaxNames: 1, MaxBytes: 1, Log: stderrLog()}) // nothing comes unasked
	if err != nil {
		return err
	}
	d.Watch(s)
	s.Move(store.Want{With: []string{loadDir + "/" + with}})
	fmt.Println("mounted")
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			var err error
			switch in.Text() {
			case hereWord:
				err = awaitHere(s)
			case settleArg:
				_, err = s.Settle(context.Background())
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				fmt.Println("failed")
				continue
			}
			fmt.Println(in.Text())
		}
	}()
	err = d.Wait()
	return errors.Join(err, s.Close())
}

// awaitHere waits until all that is to come is here and it is known of all whether it is, for a while: what has just been opened is decided about in the next round.
func awaitHere(s *store.Store) error {
	seen := 0
	for end := time.Now().Add(hereTime); ; time.Sleep(50 * time.Millisecond) {
		st := s.Status()
		if seen++; st.Forwarded+st.Partly > 0 || st.Left > 0 || st.Here == 0 || slices.ContainsFunc(st.Undecided, store.Undecided.Comparing) {
			seen = 0
		}
		if seen == 10 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("files are not here: %d forwarded, %d partly, %d bytes left; undecided %.300v", st.Forwarded, st.Partly, st.Left, st.Undecided)
		}
	}
}
