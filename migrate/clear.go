package migrate

import (
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/lazymig/lazymig/wire"
)

// refusedFor is how long a clear lane whose proof was wrong is kept, without a word: its place in the agent's lobby is taken meanwhile.
const refusedFor = time.Second

// features are what this agent says it can do.
func (a *Agent) features() uint64 {
	if a.opt.Clear {
		return wire.FeatureCleartext
	}
	return 0
}

// provesItself is for a connection without TLS: does its peer belong to the migration? If not nothing is said, not even whether there is such
// a migration, and the answer comes late. t may be nil.
func (a *Agent) provesItself(nc *net.TCPConn, p wire.Preamble, t *Target, log *slog.Logger) bool {
	token := newToken() // nobody knows it
	if t != nil && a.opt.Clear && t.msg.Cleartext {
		token = t.msg.Token
	}
	_ = nc.SetDeadline(time.Now().Add(a.patience)) // fails only when closed
	err := wire.AcceptClear(nc, p, token)
	if err != nil {
		log.Warn("clear lane refused", "lane", p.Lane, "id", p.ID, "err", err)
		if errors.Is(err, wire.ErrProof) {
			wire.Refused(nc, refusedFor)
		}
		return false
	}
	_ = nc.SetDeadline(time.Time{}) // as above
	return true
}
