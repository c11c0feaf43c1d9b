package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/wire"
)

// shown is a migration as list and status print it.
type shown struct {
	ID    string          `json:"id"`
	Side  migrate.Side    `json:"side"`
	State migrate.State   `json:"state"`
	Since time.Time       `json:"since"`
	Peer  string          `json:"peer"`
	PID   int             `json:"pid,omitempty"`
	Note  string          `json:"note,omitempty"`
	Live  *migrate.Status `json:"live,omitempty"`
	Files *migrate.Files  `json:"files,omitempty"`

	Residual []string `json:"residual"` // what the process needs from its source; null: it is not known, or not asked for
}

func show(c *cli.Context, want *wire.ID) error {
	all, err := migrate.List(c.String("state-dir"))
	found := false
	for _, k := range all {
		if want != nil && k.ID != *want {
			continue
		}
		found = true
		describe(c, k, want != nil).print(c.Bool("json"))
	}
	if want != nil && !found {
		return fmt.Errorf("%s has no record of migration %v", c.String("state-dir"), *want)
	}
	return err
}

// describe asks the process that carries it out, if ask is set.
func describe(c *cli.Context, k migrate.Known, ask bool) shown {
	e := k.Last()
	s := shown{ID: k.ID.String(), Side: e.Side, State: e.State, Since: e.Time, Peer: e.Peer, PID: e.PID, Note: e.Note}
	if ask && e.Side == migrate.SideSource && !e.State.Final() {
		live, err := migrate.Ask(c.String("state-dir"), k.ID, "status")
		if err != nil {
			live.Error = err.Error()
		}
		s.Live = &live
	}
	if ask && e.Side == migrate.SideTarget {
		s.Files, s.Live = k.ReadFiles(), k.ReadStatus()
	}
	switch {
	case ask && s.State == migrate.Detached:
		s.Residual = []string{}
	case s.Live != nil && s.Live.Error == "":
		s.Residual = residual(s.Live, s.Files)
	}
	return s
}

func (s shown) print(asJSON bool) {
	if asJSON {
		b, err := json.Marshal(s)
		if err != nil {
			panic(err) // own type
		}
		fmt.Println(string(b))
		return
	}
	if s.State == migrate.Detached {
		s.Note = strings.TrimPrefix(s.Note+"; residual dependency: none", "; ")
	}
	fmt.Printf("%s  %-6s  %-8s  %s  %s  %s\n", s.ID, s.Side, s.State, s.Since.Format(time.DateTime), s.Peer, s.Note)
	if f := s.Files; f != nil {
		if f.Detached > 0 {
			fmt.Printf("  files: %d detached\n", f.Detached)
		} else {
			fmt.Printf("  files: %d forwarded, %d partly here, %d here; %d MB left\n", f.Forwarded, f.Partly, f.Here, f.Left>>20)
		}
		for _, one := range f.Files {
			fmt.Printf("    %-9s  %s\n", one.State, one.Path)
		}
		for _, u := range f.Undecided {
			fmt.Printf("    undecided  %s %s\n", u.Path, u.Reason)
		}
	}
	if s.Live == nil {
		return
	}
	if s.Live.Error != "" {
		fmt.Printf("  %s\n", s.Live.Error)
		return
	}
	fmt.Printf("  residual dependency: %s\n", cmp.Or(strings.Join(s.Residual, ", "), "none"))
	if !s.Live.AwaySince.IsZero() {
		peer, then := "target", ""
		if s.Side == migrate.SideTarget {
			peer, then = "source", "; what needs it waits"
			if s.Live.OnSourceLoss == migrate.LossKill {
				then += ", and the process is killed if it stays away"
			}
		}
		fmt.Printf("  the %s has not answered since %s%s\n", peer, s.Live.AwaySince.Format(time.DateTime), then)
	}
}

// residual is what a process needs from its source.
func residual(l *migrate.Status, f *migrate.Files) []string {
	if len(l.Residual) > 0 {
		return l.Residual
	}
	r := []string{}
	switch l.State {
	case migrate.Resumed, migrate.Granted:
		r = append(r, fmt.Sprintf("pages (%d MB left)", l.LeftBytes>>20), "files")
	case migrate.Drained:
		if f != nil {
			r = append(r, fmt.Sprintf("files (%d of %d are not here yet)", f.Forwarded+f.Partly, f.Forwarded+f.Partly+f.Here))
		} else {
			r = append(r, "files")
		}
	}
	if l.Streams && len(r) > 0 {
		r = append(r, "descriptors (standard streams, carried)")
	}
	return r
}

func listCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Usage: "migrations that this host has records of", Flags: []cli.Flag{stateDirFlag(), jsonFlag()},
		Action: func(c *cli.Context) error {
			if err := none(c); err != nil {
				return err
			}
			return show(c, nil)
		},
	}
}

func withID(f func(*cli.Context, wire.ID) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		a, err := one(c, "migration ID")
		if err != nil {
			return err
		}
		id, err := wire.ParseID(a)
		if err != nil {
			return usage("%v", err)
		}
		return f(c, id)
	}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "where a migration stands, and what the process still needs from its source", ArgsUsage: "ID",
		Flags:  []cli.Flag{stateDirFlag(), jsonFlag()},
		Action: withID(func(c *cli.Context, id wire.ID) error { return show(c, &id) }),
	}
}

func abortCommand() *cli.Command {
	return &cli.Command{
		Name: "abort", Usage: "give a migration up before its handover: the process goes on here", ArgsUsage: "ID",
		Flags: []cli.Flag{stateDirFlag()},
		Action: withID(func(c *cli.Context, id wire.ID) error {
			if _, err := migrate.Ask(c.String("state-dir"), id, "abort"); err != nil {
				return err
			}
			fmt.Fprintln(os.Stderr, "aborting; `lazymig status` tells when it has ended")
			return nil
		}),
	}
}

func forgetCommand() *cli.Command {
	return &cli.Command{
		Name: "forget", Usage: "remove the record of a migration that is over", ArgsUsage: "ID", Flags: []cli.Flag{stateDirFlag()},
		Action: withID(func(c *cli.Context, id wire.ID) error { return migrate.Forget(c.String("state-dir"), id) }),
	}
}
