package restore

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/restore/memory"
)

// early places the pages that are never lazy: all before the release, and a task's as soon as it faults for the first
// time. By then criu's restorer has registered all of its memory, and what it touches next (thread control blocks, robust
// lists, stacks) is among them: a round trip to the source less for each.
type early struct {
	engine *memory.Engine
	wg     sync.WaitGroup

	mu    sync.Mutex
	tasks map[uint32][]EarlyPage // not begun
	err   error
}

func newEarly(e *memory.Engine, pages []EarlyPage) *early {
	y := &early{engine: e, tasks: make(map[uint32][]EarlyPage)}
	for _, p := range pages {
		y.tasks[p.Task] = append(y.tasks[p.Task], p)
	}
	return y
}

// take hands out a task's pages once. y.mu is held.
func (y *early) take(task uint32) []EarlyPage {
	pages := y.tasks[task]
	delete(y.tasks, task)
	return pages
}

// faulted is called under the engine's lock.
func (y *early) faulted(task uint32) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if pages := y.take(task); len(pages) > 0 {
		y.wg.Go(func() { y.place(pages) }) // under mu: placeAll sees a task or waits for it
	}
}

func (y *early) place(pages []EarlyPage) {
	for _, p := range pages {
		err := y.engine.Place(p.Task, p.Addr, p.Data)
		if err != nil && !errors.Is(err, unix.EFAULT) { // not lazy: it came with the images
			y.mu.Lock()
			y.err = errors.Join(y.err, fmt.Errorf("place early page: %w", err))
			y.mu.Unlock()
			return
		}
	}
}

// placeAll places what is left and waits for what is under way.
func (y *early) placeAll() error {
	y.mu.Lock()
	var left []EarlyPage
	for id := range y.tasks {
		left = append(left, y.take(id)...)
	}
	y.mu.Unlock()
	y.place(left)
	y.wg.Wait()
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.err
}
