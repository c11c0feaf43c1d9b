package migrate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lazymig/lazymig/lazyfs"
	"github.com/lazymig/lazymig/lazyfs/store"
)

// storeMsg is what agent and FUSE daemon say to each other about the store: the agent asks, any number at a time, the daemon answers
// each by its number.
type storeMsg struct {
	Number uint64          `json:"number"`
	Do     string          `json:"do,omitempty"` // differs, move, status, files, settle, local, remove, done
	Want   *store.Want     `json:"want,omitempty"`
	Inodes []uint64        `json:"inodes,omitempty"`
	Paths  []string        `json:"paths,omitempty"`  // differs, remove
	Single bool            `json:"single,omitempty"` // differs: they are single files
	Most   int             `json:"most,omitempty"`   // differs
	Calm   bool            `json:"calm,omitempty"`   // status: see storeCalm
	Within time.Duration   `json:"within,omitempty"` // nobody waits for it any longer
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	File   string          `json:"file,omitempty"` // holds the result, which is too long for a message
}

const maxResult = 64 << 10 // bytes of a result in a message

// storeDiffers lists at most so many differences of the target's own files at these paths from the source's. Before the grant.
func (d *fuseDaemon) storeDiffers(ctx context.Context, paths []string, most int) (all []store.Undecided, err error) {
	err = d.askStore(ctx, storeMsg{Do: "differs", Paths: paths, Most: most}, &all)
	return all, err
}

// storeFilesDiffer is storeDiffers for single files, as many as there are.
func (d *fuseDaemon) storeFilesDiffer(ctx context.Context, paths []string, most int) (all []store.Undecided, err error) {
	for len(paths) > 0 && len(all) < most {
		n, length := 0, 0
		for n < len(paths) && length < maxResult/2 {
			length += len(paths[n]) + 3
			n++
		}
		var some []store.Undecided
		if err := d.askStore(ctx, storeMsg{Do: "differs", Paths: paths[:n], Single: true, Most: most - len(all)}, &some); err != nil {
			return nil, err
		}
		all, paths = append(all, some...), paths[n:]
	}
	return all, nil
}

// storeMove lets files come over; the first call begins, and later ones add to what is wanted.
func (d *fuseDaemon) storeMove(ctx context.Context, w store.Want) error {
	return d.askStore(ctx, storeMsg{Do: "move", Want: &w}, nil)
}

// storeStatus tells where the files stand.
func (d *fuseDaemon) storeStatus(ctx context.Context) (st store.Status, err error) {
	err = d.askStore(ctx, storeMsg{Do: "status"}, &st)
	return st, err
}

// storeFiles lists all files that come, and where each stands.
func (d *fuseDaemon) storeFiles(ctx context.Context) (f []store.File, err error) {
	err = d.askStore(ctx, storeMsg{Do: "files"}, &f)
	return f, err
}

// storeCalm is before the tree is stopped: what it has written is brought to the source, and for a while each write waits for that.
func (d *fuseDaemon) storeCalm(ctx context.Context) error {
	return d.askStore(ctx, within(ctx, storeMsg{Do: "status", Calm: true}), nil)
}

// within tells how long ctx lasts.
func within(ctx context.Context, q storeMsg) storeMsg {
	if end, ok := ctx.Deadline(); ok {
		q.Within = time.Until(end)
	}
	return q
}

// storeSettle completes the store. The tree must be stopped, and what it has mapped and written must have been written back by fsync.
// After an error, and if anything is undecided, the tree goes on as before.
func (d *fuseDaemon) storeSettle(ctx context.Context) (st store.Settled, err error) {
	err = d.askStore(ctx, within(ctx, storeMsg{Do: "settle"}), &st)
	return st, err
}

// storeLocal tells where below the root the files are that the tree knows by these inode numbers. Those that are not there are missing.
func (d *fuseDaemon) storeLocal(ctx context.Context, inodes []uint64) (map[uint64]string, error) {
	var b map[uint64][]byte // a name need not be UTF-8
	if err := d.askStore(ctx, storeMsg{Do: "local", Inodes: inodes}, &b); err != nil {
		return nil, err
	}
	paths := make(map[uint64]string, len(b))
	for ino, p := range b {
		paths[ino] = string(p)
	}
	return paths, nil
}

// storeDone says that the tree lives on the store from now on.
func (d *fuseDaemon) storeDone(ctx context.Context) error {
	return d.askStore(ctx, storeMsg{Do: "done"}, nil)
}

// storeRemove removes trees that have moved from the source. After the switch and before storeDone.
func (d *fuseDaemon) storeRemove(ctx context.Context, paths []string) (r store.Removed, err error) {
	err = d.askStore(ctx, storeMsg{Do: "remove", Paths: paths}, &r)
	return r, err
}

// askStore asks one question. If ctx ends first the answer is dropped when it comes.
func (d *fuseDaemon) askStore(ctx context.Context, q storeMsg, result any) error {
	c := make(chan storeMsg, 1)
	d.mu.Lock()
	d.asked++
	q.Number = d.asked
	d.asks[q.Number] = c
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.asks, q.Number)
		d.mu.Unlock()
	}()
	if err := d.send(fuseMsg{Op: "store", Store: &q}); err != nil {
		return fmt.Errorf("ask FUSE daemon to %s files: %w", q.Do, err)
	}
	select {
	case a := <-c:
		return a.read(q.Do, result)
	case <-d.done:
		return fmt.Errorf("ask FUSE daemon to %s files: %w", q.Do, errDaemonEnded)
	case <-ctx.Done():
		return fmt.Errorf("ask FUSE daemon to %s files: %w", q.Do, context.Cause(ctx))
	}
}

// read takes the result out of an answer.
func (a *storeMsg) read(do string, result any) error {
	if a.Error == errDaemonDied.Error() {
		return errDaemonDied
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	if a.File != "" {
		b, err := os.ReadFile(a.File)
		_ = os.Remove(a.File)
		if err != nil {
			return fmt.Errorf("read answer of FUSE daemon to %s: %w", do, err)
		}
		a.Result = b
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.Result, result); err != nil {
		return fmt.Errorf("read answer of FUSE daemon to %s: %w", do, err)
	}
	return nil
}

// storeAnswer passes an answer to who asked.
func (d *fuseDaemon) storeAnswer(a *storeMsg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.asks[a.Number]; c != nil {
		c <- *a // has room
		delete(d.asks, a.Number)
	}
}

var (
	errDaemonDied  = errors.New("the FUSE daemon has died, and another has taken its place: ask again from the beginning")
	errDaemonEnded = errors.New("it has ended")
)

// daemonGone says that the daemon which was asked will not answer any more, whether another follows it or not.
func daemonGone(err error) bool {
	return errors.Is(err, errDaemonDied) || errors.Is(err, errDaemonEnded)
}

// number tells one daemon from those that follow it, from 1 on.
func (d *fuseDaemon) number() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.followed + 1
}

// storeLost tells all who asked that the daemon which would have answered is dead. The next one knows nothing of the store.
func (d *fuseDaemon) storeLost() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.followed++
	for n, c := range d.asks {
		c <- storeMsg{Error: errDaemonDied.Error()} // has room
		delete(d.asks, n)
	}
}

// askedStore is the daemon's side.
func (p *fuseProcess) askedStore(q storeMsg) error {
	s, err := p.storeFor(&q)
	if err != nil {
		return p.sock.Send(encode(fuseMsg{Op: "store", Store: &storeMsg{Number: q.Number, Error: err.Error()}}))
	}
	p.wg.Go(func() { p.answerStore(s, q) })
	return nil
}

// mostEarly bounds what waits for a connection: an agent asks one thing at a time, and the next one asks anew.
const mostEarly = 64

// askedEarly is askedStore for a daemon that follows another and has no connection yet, which it needs to make a store. To end here, or to answer that
// it has died, would be no help: the next one has no connection either, and what the agent hands over meanwhile would go to one that is dead.
func (p *fuseProcess) askedEarly(q storeMsg) error {
	if q.Do != "move" || len(p.early) == mostEarly {
		return p.askedStore(storeMsg{Number: q.Number}) // it has none
	}
	p.log.Debug("a question about the store waits for a files lane", "do", q.Do)
	p.early = append(p.early, q)
	return nil
}

// answerStore works for one question and answers.
func (p *fuseProcess) answerStore(s *store.Store, q storeMsg) {
	v, err := doStore(p.ctx, p.daemon, s, q)
	if q.Do == "done" {
		p.daemon.Watch(nil) // what the tree does from now on concerns what stays at the source
	}
	p.answer(q, v, err)
}

// answerDiffers is answerStore for the one question that needs no store.
func (p *fuseProcess) answerDiffers(q storeMsg) {
	differs := store.Differs
	if q.Single {
		differs = store.FilesDiffer
	}
	v, err := differs(p.ctx, p.client, "/", q.Paths, q.Most)
	p.answer(q, v, err)
}

func (p *fuseProcess) answer(q storeMsg, v any, err error) {
	a := storeMsg{Number: q.Number}
	if err == nil {
		a.Result, err = json.Marshal(v)
	}
	if err == nil && len(a.Result) > maxResult {
		a.File = filepath.Join(p.cfg.StoreDir, fmt.Sprintf("answer-%d", q.Number))
		err = os.WriteFile(a.File, a.Result, 0o600)
		a.Result = nil
	}
	if err != nil {
		a = storeMsg{Number: q.Number, Error: err.Error()}
	}
	if err := p.sock.Send(encode(fuseMsg{Op: "store", Store: &a})); err != nil {
		p.log.Warn("answer agent", "to", q.Do, "err", err) // it is gone
	}
}

func doStore(ctx context.Context, d *lazyfs.Daemon, s *store.Store, q storeMsg) (any, error) {
	if q.Within != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, q.Within, errors.New("the source does not answer"))
		defer cancel()
	}
	switch q.Do {
	case "move":
		if q.Want == nil {
			return nil, errors.New("nothing is said about what shall move")
		}
		s.Move(*q.Want)
		return nil, nil
	case "status":
		if q.Calm {
			if err := written(ctx, d.Calm, d, s); err != nil {
				return nil, err
			}
		}
		return s.Status(), nil
	case "files":
		return s.Files(), nil
	case "settle":
		if err := written(ctx, d.Settle, d, s); err != nil { // the tree stands still: what it has written is told to the store
			return nil, err
		}
		return s.Settle(ctx)
	case "local":
		paths := map[uint64][]byte{}
		for _, ino := range q.Inodes {
			if p, ok := s.Local(ino); ok {
				paths[ino] = []byte(p)
			}
		}
		return paths, nil
	case "remove":
		return s.RemoveSource(ctx, q.Paths)
	case "done":
		return nil, s.Done()
	}
	return nil, fmt.Errorf("the store can't %q", q.Do)
}

// written waits until what the tree has written is at the source. What failed there the tree must have heard of: it can't any more once its descriptors are of local files.
func written(ctx context.Context, wait func(context.Context) error, d *lazyfs.Daemon, s *store.Store) error {
	if err := wait(ctx); err != nil {
		return err
	}
	for node, err := range d.Unheard() {
		return fmt.Errorf("what was written to %s could not be done at the source, and the tree has not asked by fsync or close: it would never hear of it: %w", cmp.Or(s.Path(node), "a file without a name"), err)
	}
	return nil
}

// storeFor is the store that a question is about. It is made, empty, when files shall move, and by no other question: that is about the store of a daemon
// which has died since, and the tree may live on its files.
func (p *fuseProcess) storeFor(q *storeMsg) (*store.Store, error) {
	switch {
	case p.store != nil:
		return p.store, nil
	case q.Do != "move":
		return nil, errDaemonDied
	}
	return p.startStore(q.Want)
}

func (p *fuseProcess) startStore(w *store.Want) (*store.Store, error) {
	if !p.handed.Load() {
		return nil, errors.New("files move after the grant only")
	}
	s, err := store.New(p.ctx, store.Options{
		Dir: p.cfg.StoreDir, Remote: p.client, Busy: p.daemon.Busy, Locals: p.daemon.NameLocals, Later: p.cfg.TakeOver, Log: p.log,
	})
	if err != nil {
		return nil, err
	}
	p.store = s
	if w != nil {
		s.Move(*w) // before it hears of what is open: what is declared to be local is so from the beginning
	}
	p.daemon.Watch(s)
	return s, nil
}
