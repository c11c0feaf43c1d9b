package main

import (
	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/keys"
)

func keysCommand() *cli.Command {
	return &cli.Command{
		Name: "keys", Usage: "certificates by which hosts trust each other",
		Subcommands: []*cli.Command{
			{
				Name: "init", Usage: "make a CA", ArgsUsage: "DIR",
				Action: func(c *cli.Context) error {
					if c.NArg() != 1 {
						return usage("keys init takes exactly one directory")
					}
					return keys.Init(c.Args().First())
				},
			},
			{
				Name: "host", Usage: "make a certificate with all names and addresses of the hosts", ArgsUsage: "DIR NAME-OR-ADDRESS…",
				Action: func(c *cli.Context) error {
					if c.NArg() < 2 {
						return usage("keys host takes a directory and at least one name or address")
					}
					return keys.Host(c.Args().First(), c.Args().Tail()...)
				},
			},
		},
	}
}
