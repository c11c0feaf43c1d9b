package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/wire"
)

func recoverCommand() *cli.Command {
	return &cli.Command{
		Name:  "recover",
		Usage: "show what stands of this host's migrations; go on with one that nobody serves any more, until it is over",
		Description: "A source's process that is killed is started again by its warden. Only if that was killed, too, is this needed: memory and files are served again then.\n" +
			"--resume-source lets the tree run on this host again, if the target proves that it never ran there.",
		ArgsUsage: "[ID]",
		Flags: []cli.Flag{
			stateDirFlag(), &cli.StringFlag{Name: "tls-dir", Usage: "certificates (default: as the migration began)"}, jsonFlag(),
			&cli.BoolFlag{Name: "resume-source", Usage: "let the tree run here again"},
			&cli.BoolFlag{Name: "i-know-the-target-is-dead", Usage: "with --resume-source: without the target's proof. If it is wrong, the process runs on both hosts and both change its data"},
			&cli.BoolFlag{Name: "debug", Usage: "log more"},
		},
		Action: func(c *cli.Context) error {
			dead := c.Bool("i-know-the-target-is-dead")
			if dead && !c.Bool("resume-source") {
				return usage("--i-know-the-target-is-dead belongs to --resume-source")
			}
			if c.NArg() == 0 && !c.Bool("resume-source") {
				return showUnfinished(c)
			}
			return withID(func(c *cli.Context, id wire.ID) error {
				if !c.Bool("resume-source") {
					return recoverOne(c, id)
				}
				if dead {
					fmt.Fprintln(os.Stderr, "lazymig: warning: if the target is not dead, or comes back, the process runs on both hosts from now on")
				}
				log := logger(c.Bool("debug"), c.Bool("json"))
				return migrate.ResumeHere(c.Context, c.String("state-dir"), id, c.String("tls-dir"), dead, log)
			})(c)
		},
	}
}

func recoverOne(c *cli.Context, id wire.ID) error {
	if err := show(c, &id); err != nil {
		return err
	}
	p := newPrinter(c.Bool("json"))
	err := migrate.Recover(c.Context, c.String("state-dir"), id, c.String("tls-dir"), p.print, logger(c.Bool("debug"), c.Bool("json")))
	if errors.Is(err, migrate.ErrServed) {
		return nil // which was shown
	}
	return err
}

// showUnfinished shows what is not over.
func showUnfinished(c *cli.Context) error {
	all, err := migrate.List(c.String("state-dir"))
	for _, k := range all {
		if !k.Last().State.Final() {
			describe(c, k, true).print(c.Bool("json"))
		}
	}
	return err
}
