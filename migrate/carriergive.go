package migrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/restore/detach"
)

// A stream that goes to a file of this host, to its journald or nowhere needs the carrier only because CRIU opens what it is given anew, as the pipe that it was: a file
// would lose its end and O_APPEND, a socket can't be opened. The switch gives the tree the file itself; what is in the pipe then has been passed on before.

// carrierAnswer is to the one question that is asked at a time.
type carrierAnswer struct {
	b     []byte
	files []*os.File
}

// answered keeps an answer for who asks. One that nobody has taken is to a question that was given up.
func (l *carrierLink) answered(a carrierAnswer) {
	for {
		select {
		case l.answers <- a:
			return
		case old := <-l.answers:
			fdpass.CloseAll(old.files)
		}
	}
}

// ask asks the carrier one question at a time, by number: what is answered to one that was given up is dropped.
func (l *carrierLink) ask(ctx context.Context, question, answer byte) (carrierAnswer, error) {
	l.asked++
	next, err := l.put(question)
	for {
		if err != nil && l.kept == nil {
			return carrierAnswer{}, fmt.Errorf("ask carrier of standard streams: %w", err)
		}
		select {
		case <-next: // of one that was killed: the next is asked
			next, err = l.put(question)
		case a := <-l.answers:
			if len(a.b) > 1 && a.b[0] == answer && a.b[1] == l.asked {
				a.b = a.b[2:]
				return a, nil
			}
			fdpass.CloseAll(a.files)
		case <-l.gone:
			return carrierAnswer{}, errors.New("the carrier of standard streams is gone")
		case <-ctx.Done():
			return carrierAnswer{}, fmt.Errorf("ask carrier of standard streams: %w", context.Cause(ctx))
		}
	}
}

// put asks the carrier that there is now; next is closed when there is another.
func (l *carrierLink) put(question byte) (next <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sock == nil {
		return l.next, nil
	}
	return l.next, l.sock.Send([]byte{question, l.asked})
}

// give is what the tree may have itself; left: how many streams are carried all the same.
func (l *carrierLink) give(ctx context.Context) (given []detach.Stream, left int, err error) {
	if l == nil {
		return nil, 0, nil
	}
	a, err := l.ask(ctx, carrierGive, carrierGiven)
	if err != nil {
		return nil, 0, err
	}
	var m givenMsg
	if err = json.Unmarshal(a.b, &m); err == nil && len(m.Links) != len(a.files) {
		err = errLink
	}
	if err != nil {
		fdpass.CloseAll(a.files)
		return nil, 0, fmt.Errorf("what the tree may have of its standard streams: %w", err)
	}
	for i, link := range m.Links {
		given = append(given, detach.Stream{Link: link, File: a.files[i]})
	}
	return given, m.Left, nil
}

// empty lets the carrier pass on what the tree, which is stopped, has written.
func (l *carrierLink) empty(ctx context.Context) error {
	a, err := l.ask(ctx, carrierEmpty, carrierEmptied)
	if err != nil {
		return err
	}
	if len(a.b) > 0 {
		return errors.New(string(a.b))
	}
	return nil
}
