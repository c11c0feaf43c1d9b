package restore

import (
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/lazymig/lazymig/internal/fdpass"
)

// SocketName is where a guardian can be reached by the next agent, in the directory that Options.Dir names.
const SocketName = "guardian.sock"

// controls are the guardian's connections to its agent: one at a time, and from the question on the newest wins.
type controls struct {
	next chan *fdpass.Socket

	mu  sync.Mutex
	cur *fdpass.Socket
}

func (c *controls) now() *fdpass.Socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cur
}

// change waits for the next agent.
func (c *controls) change() {
	n := <-c.next
	c.mu.Lock()
	old := c.cur
	c.cur = n
	c.mu.Unlock()
	old.Close()
}

// listen takes connections on a socket that the agent has bound.
func (c *controls) listen(f *os.File, ready func() bool, log *slog.Logger) error {
	err := fdpass.Listen(f, func(s *fdpass.Socket) {
		if !ready() {
			log.Warn("agent refused: there is one, and nothing to outlive that")
			s.Close()
			return
		}
		c.now().Shutdown()
		c.next <- s
	}, func(err error) { log.Error("connection of an agent", "err", err) })
	if err != nil {
		return fmt.Errorf("wait for the next agent: %w", err)
	}
	return nil
}
