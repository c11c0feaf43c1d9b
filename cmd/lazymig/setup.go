package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/setup"
)

func setupCommand() *cli.Command {
	return &cli.Command{
		Name: "setup", Usage: "install what this host lacks: CRIU ≥ 4.2, in a folder of its own",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "package", Usage: "distribution's `PACKAGE` that shall be there too (repeatable)"},
			&cli.StringFlag{Name: "cache", EnvVars: []string{"LAZYMIG_CACHE"}, Usage: "`DIR` for CRIU (default: the project's .cache, or /var/lib/lazymig)"},
		},
		Action: func(c *cli.Context) error {
			if err := none(c); err != nil {
				return err
			}
			p, err := setup.Run(c.Context, setup.Options{Packages: append([]string{"patchelf"}, c.StringSlice("package")...), Out: os.Stdout, Log: logger(false, false)})
			if err != nil {
				return err
			}
			fmt.Println(p)
			return nil
		},
	}
}

func labCommand() *cli.Command {
	host := func(c *cli.Context, f func(*lab.Host) error) error {
		name := c.Args().First()
		if name != "A" && name != "B" {
			return usage("host %q: A or B", name)
		}
		l, err := lab.Attach("")
		if err != nil {
			return err
		}
		if name == "A" {
			return f(l.A)
		}
		return f(l.B)
	}
	return &cli.Command{
		Name: "lab", Usage: "two hosts on this machine, in namespaces, to play with",
		Subcommands: []*cli.Command{
			{
				Name: "up", Usage: "make hosts A and B",
				Action: func(c *cli.Context) error {
					root, err := os.Getwd()
					if err != nil {
						return fmt.Errorf("find project: %w", err)
					}
					if err := lab.Background(c.Context, lab.Options{Share: lab.ProjectShare(root)}); err != nil {
						return err
					}
					l, err := lab.Attach("")
					if err != nil {
						return err
					}
					fmt.Printf("host A is %s, host B is %s; try `lazymig lab exec B -- ip addr`\n", l.A.Addr, l.B.Addr)
					return nil
				},
			},
			{
				Name: "exec", Usage: "run a command in a host", ArgsUsage: "HOST -- CMD…",
				Action: func(c *cli.Context) error {
					if c.NArg() < 2 {
						return usage("lab exec takes a host and a command")
					}
					return host(c, func(h *lab.Host) error {
						args := c.Args().Tail()
						if args[0] == "--" {
							args = args[1:]
						}
						if len(args) == 0 {
							return usage("lab exec takes a host and a command")
						}
						cmd := h.Command(c.Context, args[0], args[1:]...)
						cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
						err := cmd.Run()
						if ee, ok := errors.AsType[*exec.ExitError](err); ok && ee.ExitCode() > 0 {
							return &exitErr{ee.ExitCode(), fmt.Errorf("%s: %w", args[0], err)}
						}
						return err
					})
				},
			},
			{
				Name: "down", Usage: "take the hosts away",
				Action: func(c *cli.Context) error { return lab.Stop(c.Context, "") },
			},
		},
	}
}
