package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/migrate"
)

func agentCommand() *cli.Command {
	return &cli.Command{
		Name:  "agent",
		Usage: "accept process trees on this host",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "`ADDR:PORT`"},
			&cli.StringSliceFlag{Name: "allow", Usage: "`NAME` of a certificate that may connect (repeatable; default: all of this CA)"},
			&cli.BoolFlag{Name: "stream-writes", Usage: "let trees go on before what they write to files at the source has arrived there; close and fsync wait"},
			&cli.BoolFlag{Name: "allow-cleartext", Usage: "take pages and files unencrypted from who asks for it with --cleartext: for links that are encrypted already"},
			&cli.StringFlag{Name: "ahead-memory", Usage: "most `BYTES`, with K, M or G, that are kept of memory that comes ahead of one process (default: three quarters of what is free)"},
			&cli.BoolFlag{Name: "images-on-disk", Usage: "keep images of processes, which hold parts of their memory, in the state directory while they are restored, not on a tmpfs"},
			stateDirFlag(), tlsDirFlag(), criuFlag(),
			&cli.BoolFlag{Name: "debug", Usage: "log more"},
		},
		Action: func(c *cli.Context) error {
			if err := none(c); err != nil {
				return err
			}
			if err := address(c, "listen"); err != nil {
				return err
			}
			room, err := parseRate(c.String("ahead-memory"))
			if err != nil {
				return usage("--ahead-memory %q: %v", c.String("ahead-memory"), err)
			}
			path, prefix, err := criu.Find(c.String("criu"))
			if err != nil {
				return err
			}
			dir, err := filepath.Abs(c.String("state-dir"))
			if err != nil {
				return fmt.Errorf("find state directory: %w", err)
			}
			log := logger(c.Bool("debug"), true)
			starter, err := migrate.ConfineAgent(dir, path, log)
			if err != nil {
				return err
			}
			defer starter.Close()
			a, err := migrate.NewAgent(migrate.AgentOptions{
				Listen: c.String("listen"), StateDir: dir, TLSDir: c.String("tls-dir"), Allow: c.StringSlice("allow"), Clear: c.Bool("allow-cleartext"), StreamWrites: c.Bool("stream-writes"),
				ImagesOnDisk: c.Bool("images-on-disk"), AheadMemory: room, CRIUPath: path, CRIUPref: prefix, Starter: starter, Log: log,
			})
			if err != nil {
				return err
			}
			fmt.Printf("lazymig agent listens on %v\n", a.Addr())
			return a.Serve(c.Context)
		},
	}
}
