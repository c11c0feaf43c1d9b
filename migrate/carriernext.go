package migrate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/restore"
)

// What follows a carrier that was killed: the agent starts another, and gives it what the guardian keeps.

const (
	carrierPause     = 10 * time.Millisecond // before the next is started; twice as long each time that one can't
	carrierPauseMost = 500 * time.Millisecond
	carrierLife      = 5 * time.Second // of one that is followed by the next without a longer pause
)

// startNext starts carriers until one has taken over; false: there is nothing that it could take over, or nobody wants it any more.
func (l *carrierLink) startNext(pause *time.Duration) bool {
	if proc := l.process(); proc != nil && l.socket() != nil {
		if err := endCarrier(proc); err != nil { // it may have closed its socket and live
			l.log.Error("carrier of standard streams", "err", err)
		}
	}
	l.log.Warn("the carrier of standard streams is lost; starting the next", "state", "the tree waits for its streams meanwhile")
	for ; ; *pause = min(2**pause, carrierPauseMost) {
		select {
		case <-time.After(*pause):
		case <-l.leaving.Done():
			return false
		}
		err := l.tryNext()
		switch {
		case err == nil:
			*pause = min(2**pause, carrierPauseMost)
			return true
		case errors.Is(err, restore.ErrDead), errors.Is(err, errNothingKept), errors.Is(err, parts.ErrLost):
			l.log.Error("standard streams are not carried any more; the tree waits at their ends", "err", err)
			l.relay.follows(false)
			l.relay.end()
			return false
		}
		l.log.Error("start the next carrier of standard streams", "err", err)
	}
}

func endCarrier(proc *parts.Process) error {
	if err := proc.Kill(); err != nil {
		return fmt.Errorf("kill carrier: %w", err)
	}
	_ = proc.Wait() // how it ended is known
	return nil
}

var errNothingKept = errors.New("the streams of this tree do not outlive their carrier")

// tryNext starts one.
func (l *carrierLink) tryNext() error {
	kept, err := l.kept(l.leaving)
	defer func() {
		for _, f := range kept {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	if kept[keptRecord] == nil {
		return errNothingKept
	}
	if err := os.Remove(filepath.Join(l.dir, carrierSocket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the socket of the carrier that is gone: %w", err)
	}
	sock, proc, err := l.startProcess()
	if err != nil {
		return err
	}
	if err = sendNumbered(sock, kept); err == nil {
		err = sock.Send([]byte{carrierResume})
	}
	var b []byte
	if err == nil {
		stop := context.AfterFunc(l.leaving, func() { sock.Close() })
		b, _, err = l.await(sock, func([]byte, []*os.File) error { return errLink })
		stop()
	}
	if err == nil && b[0] != carrierResumed {
		err = errLink
	}
	if err != nil {
		sock.Close()
		return errors.Join(err, endCarrier(proc))
	}
	l.mu.Lock()
	if l.leaving.Err() != nil { // leave has not seen this one
		l.mu.Unlock()
		sock.Close()
		return errors.Join(context.Cause(l.leaving), endCarrier(proc))
	}
	l.sock, l.proc = sock, proc
	if l.stays {
		_ = sock.Send([]byte{carrierStay}) // one that is gone is followed by another
	}
	if l.starts {
		_ = sock.Send([]byte{carrierStart}) // as above
	}
	close(l.next)
	l.next = make(chan struct{})
	l.mu.Unlock()
	l.relay.resume(sock)
	l.log.Warn("another carrier of standard streams has taken over")
	return nil
}
