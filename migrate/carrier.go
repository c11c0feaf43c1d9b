package migrate

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazymig/lazymig/internal/confine"
	"github.com/lazymig/lazymig/internal/fdpass"
	"github.com/lazymig/lazymig/internal/parts"
	"github.com/lazymig/lazymig/restore"
)

// CarrierArg is the hidden subcommand that runs CarrierMain.
const CarrierArg = parts.Carrier

// carrierSocket is where the next agent finds the carrier, in the record's directory.
const carrierSocket = "streams.sock"

// The carrier is the process that holds the other ends of a moved tree's standard streams on the target, and what has been read of them and not yet passed on: it outlives the
// agent. The guardian keeps copies of the ends, and of what else the next carrier needs (stdiokept.go) where this one is killed: the tree waits meanwhile, for ever if the
// streams go to a file or to journald. Agent and carrier say, one datagram each, beside what a relay's link says:
const (
	carrierOpen    = 120 // to the carrier: carrierConfig
	carrierOpened  = 121 // to the agent: openedMsg; descriptors: those for the tree
	carrierFailed  = 122 // to the agent: why
	carrierStart   = 123 // to the carrier: the tree runs
	carrierDrop    = 124 // to the agent: streams whose copies the guardian is to drop (JSON)
	carrierOver    = 125 // to the carrier: end
	carrierStay    = 126 // to the carrier: from now on it outlives the agent
	carrierGive    = 127 // to the carrier, with a number that the answer has, too: what may the tree have itself?
	carrierGiven   = 128 // to the agent: givenMsg; descriptors: those
	carrierEmpty   = 129 // to the carrier, in the same way: the tree is stopped; pass on all that it has written to those
	carrierEmptied = 130 // to the agent: why not; nothing: it is done
	carrierKeep    = 131 // to the agent, before carrierOpened; to the next carrier, before carrierResume: numbers (JSON); descriptors: those, for and from the guardian
	carrierResume  = 132 // to the next carrier: these were all; go on
	carrierResumed = 133 // to the agent: it does; or carrierFailed
)

type carrierConfig struct {
	Slots []stdioSlot `json:"slots"`
	Name  string      `json:"name"` // for the journal
}

type openedMsg struct {
	Keys []string `json:"keys"` // of what the tree inherits
}

// givenMsg tells what the tree may have in the place of its ends, so that nobody has to carry.
type givenMsg struct {
	Links []string `json:"links"` // of the tree's ends in /proc
	Left  int      `json:"left"`  // how many streams are carried all the same
}

// carrierProcess is the process; one goroutine drives it.
type carrierProcess struct {
	log     *slog.Logger
	stdio   *targetStdio
	kept    map[uint32]*os.File // that the guardian had; until carrierResume
	stays   bool
	started bool
	dropped []uint32
	end     relayEnd
	agents  chan *fdpass.Socket
	drops   chan uint32
	flushed chan struct{}
	emptied chan []byte // answers
}

// CarrierMain is the process: os.Args[2] is the directory of its socket.
func CarrierMain(log *slog.Logger) error {
	if len(os.Args) != 3 {
		return errors.New("the carrier is started by the agent, not by hand")
	}
	err := confine.Stage(carrierLimits())
	if err == nil {
		err = confine.Syscalls(carrierCalls()...)
	}
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	unix.CloseOnExec(3)
	first, err := fdpass.New(os.NewFile(3, "agent"))
	if err != nil {
		return err
	}
	c := &carrierProcess{log: log.With("part", "carrier"), agents: make(chan *fdpass.Socket), drops: make(chan uint32, maxStdio), flushed: make(chan struct{}), emptied: make(chan []byte, 1)}
	listen, err := fdpass.Bind(os.Args[2], carrierSocket)
	if err == nil {
		err = fdpass.Listen(listen, func(s *fdpass.Socket) { c.agents <- s }, func(err error) { c.log.Error("agent", "err", err) })
	}
	if err != nil {
		return fmt.Errorf("wait for the next agent: %w", err)
	}
	err = c.run(first)
	c.stdio.close()
	return err
}

type carrierHeard struct {
	from  *fdpass.Socket
	b     []byte
	files []*os.File
	err   error
}

// run serves one agent after the other.
func (c *carrierProcess) run(agent *fdpass.Socket) error {
	heard, over := make(chan carrierHeard), make(chan struct{})
	defer close(over)
	hear := func(s *fdpass.Socket) {
		buf := make([]byte, fdpass.MaxMessage)
		for reset := false; ; {
			n, files, err := s.Recv(buf)
			if errors.Is(err, unix.ECONNRESET) && !reset {
				// The agent closed without having read all. The kernel tells that first, once; what it said, carrierOver perhaps, stands behind.
				reset = true
				continue
			}
			select {
			case heard <- carrierHeard{from: s, b: append([]byte(nil), buf[:max(n, 0)]...), files: files, err: err}:
			case <-over:
				fdpass.CloseAll(files)
				return
			}
			if err != nil {
				return
			}
		}
	}
	go hear(agent)
	flushed := c.flushed
	for {
		select {
		case h := <-heard:
			if h.from != agent || h.err != nil || h.b[0] != carrierKeep || c.stdio != nil {
				fdpass.CloseAll(h.files)
				h.files = nil
			}
			if h.from != agent {
				continue // one that has been replaced
			}
			if h.err != nil {
				if !c.stays {
					return nil
				}
				c.log.Warn("the agent is gone; what the tree writes waits for the next", "err", h.err)
				agent.Close()
				agent = nil
				c.stdio.streams().attach(nil)
				continue
			}
			if h.b[0] == carrierOver {
				return nil
			}
			if err := c.handle(agent, h.b, h.files); err != nil {
				return err
			}
		case next := <-c.agents:
			if agent != nil {
				agent.Close()
			}
			c.stdio.streams().attach(nil)
			agent = next
			c.end = relayEnd{agent, c.stdio.streams()}
			go hear(agent)
			c.tell(agent, carrierDrop, c.dropped)
			if flushed == nil {
				_ = agent.Send([]byte{linkFlushed}) // if it is gone the next one asks
			}
		case n := <-c.drops:
			c.dropped = append(c.dropped, n)
			c.tell(agent, carrierDrop, []uint32{n})
		case answer := <-c.emptied:
			if agent != nil {
				_ = agent.Send(answer) // if it is gone the switch gives up
			}
		case <-flushed:
			flushed = nil
			if agent != nil {
				_ = agent.Send([]byte{linkFlushed}) // as above
			}
		}
	}
}

func (c *carrierProcess) tell(agent *fdpass.Socket, kind byte, v any) {
	if agent != nil {
		_ = agent.Send(append([]byte{kind}, encode(v)...)) // if it is gone the next one is told
	}
}

func (c *carrierProcess) handle(agent *fdpass.Socket, b []byte, files []*os.File) error {
	switch {
	case b[0] == carrierOpen && c.stdio == nil:
		var cfg carrierConfig
		err := json.Unmarshal(b[1:], &cfg)
		if err == nil {
			c.stdio, err = openStdio(cfg.Slots, cfg.Name, c.log)
		}
		if err != nil {
			return agent.Send(append([]byte{carrierFailed}, err.Error()...))
		}
		return c.opened(agent)
	case b[0] == carrierKeep && c.stdio == nil:
		return keepNumbered(&c.kept, b, files)
	case b[0] == carrierResume && c.stdio == nil:
		return c.resume(agent)
	case b[0] == carrierStay:
		c.stays = true
		return nil
	case b[0] == carrierStart && c.stdio != nil:
		if !c.started {
			c.started = true
			c.stdio.start()
			go c.flush()
		}
		return nil
	case b[0] == carrierGive && len(b) == 2 && c.stdio != nil:
		return c.give(agent, b[1])
	case b[0] == carrierEmpty && len(b) == 2 && c.stdio != nil:
		go c.empty(b[1]) // for a bounded time
		return nil
	case c.stdio != nil:
		return c.end.handle(b)
	}
	return errLink
}

// opened gives the agent what the tree and the guardian get.
func (c *carrierProcess) opened(agent *fdpass.Socket) error {
	st := c.stdio
	st.drop = func(n uint32) { c.drops <- n }
	err := sendNumbered(agent, st.ours)
	var m openedMsg
	var files []*os.File
	for _, i := range st.inherits {
		m.Keys = append(m.Keys, i.Key)
		files = append(files, i.File)
	}
	if err == nil {
		err = agent.Send(append([]byte{carrierOpened}, encode(m)...), files...)
	}
	st.restored()
	c.end = relayEnd{agent, st.relay}
	return err
}

// resume goes on where another carrier was killed. If that can't be there is nothing to carry here.
func (c *carrierProcess) resume(agent *fdpass.Socket) error {
	st, over, err := resumeStdio(c.kept)
	c.kept = nil
	if err != nil {
		return agent.Send(append([]byte{carrierFailed}, err.Error()...))
	}
	st.drop = func(n uint32) { c.drops <- n }
	c.stdio, c.dropped, c.end = st, over, relayEnd{agent, st.relay}
	err = agent.Send([]byte{carrierResumed})
	c.tell(agent, carrierDrop, over)
	return err
}

// sendNumbered sends descriptors with their numbers, in as many messages as are needed.
func sendNumbered(to *fdpass.Socket, kept map[uint32]*os.File) error {
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(kept)), fdpass.MaxFiles) {
		var files []*os.File
		for _, id := range ids {
			files = append(files, kept[id])
		}
		if err := to.Send(append([]byte{carrierKeep}, encode(ids)...), files...); err != nil {
			return err
		}
	}
	return nil
}

// keepNumbered takes what sendNumbered has sent.
func keepNumbered(kept *map[uint32]*os.File, b []byte, files []*os.File) error {
	var ids []uint32
	if err := json.Unmarshal(b[1:], &ids); err != nil || len(ids) != len(files) {
		fdpass.CloseAll(files)
		return errLink
	}
	if *kept == nil {
		*kept = map[uint32]*os.File{}
	}
	for i, id := range ids {
		if old := (*kept)[id]; old != nil {
			old.Close()
		}
		(*kept)[id] = files[i]
	}
	return nil
}

// give tells the agent what the tree may have itself.
func (c *carrierProcess) give(agent *fdpass.Socket, number byte) error {
	m, files, err := c.stdio.given()
	if err != nil {
		c.log.Error("give streams to the tree", "err", err) // they are carried on
	}
	err = agent.Send(append([]byte{carrierGiven, number}, encode(m)...), files...)
	for _, f := range files {
		f.Close()
	}
	return err
}

// empty answers when what the tree, which is stopped, has written has been passed on.
func (c *carrierProcess) empty(number byte) {
	answer := []byte{carrierEmptied, number}
	if err := c.stdio.empty(); err != nil {
		answer = append(answer, err.Error()...)
	}
	select {
	case c.emptied <- answer:
	default: // one that nobody has taken yet; the agent gives up
	}
}

// flush waits until all that the tree wrote has been passed on and nothing will come.
func (c *carrierProcess) flush() {
	c.stdio.wg.Wait() // sinks
	for !c.stdio.relay.allSent() {
		select {
		case <-c.stdio.relay.idle:
		case <-c.stdio.relay.quit:
			return
		}
	}
	close(c.flushed)
}

// inheritsOf is what the tree gets.
func (m *openedMsg) inheritsOf(files []*os.File) (in []restore.Inherit, err error) {
	if len(files) != len(m.Keys) {
		fdpass.CloseAll(files)
		return nil, errLink
	}
	for i, k := range m.Keys {
		in = append(in, restore.Inherit{Key: k, File: files[i]})
	}
	return in, nil
}
