// Command lazymig moves a live process tree to another host. See README.md; `lazymig help` lists the commands.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/dump"
	"github.com/lazymig/lazymig/internal/lograte"
	"github.com/lazymig/lazymig/lab"
	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/preflight"
	"github.com/lazymig/lazymig/restore"
	"github.com/lazymig/lazymig/restore/detach"
)

// Exit codes, documented in README.md.
const (
	exitOK        = 0
	exitError     = 1 // anything else
	exitUsage     = 2
	exitPreflight = 3 // refused before anything was touched
	exitRunning   = 4 // failed; the process runs on the source as before
	exitHanded    = 5 // failed after the handover; see `lazymig status`
)

// exitErr carries an exit code.
type exitErr struct {
	code int
	err  error
}

func (e *exitErr) Error() string { return e.err.Error() }
func (e *exitErr) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &exitErr{exitUsage, fmt.Errorf(format, args...)}
}

func main() { os.Exit(run()) }

// hidden are the processes of lazymig itself, started by it and not by people.
func hidden(log *slog.Logger) map[string]func() error {
	return map[string]func() error{
		migrate.SourceArg:     func() error { return migrate.SourceMain(log) },
		migrate.WardenArg:     func() error { return migrate.WardenMain(log) },
		migrate.CarrierArg:    func() error { return migrate.CarrierMain(log) },
		migrate.GuestArg:      migrate.GuestMain,
		migrate.FuseDaemonArg: func() error { return migrate.FuseDaemonMain(log) },
		migrate.StarterArg:    func() error { return migrate.StarterMain(log) },
		migrate.FuseKeeperArg: func() error { return migrate.FuseKeeperMain(log) },
		detach.Arg:            func() error { return migrate.SwitchMain(log) },
		restore.GuardianArg:   func() error { restore.GuardianMain(); return nil },
		restore.HandlerArg:    func() error { restore.HandlerMain(); return nil },
		preflight.InjectorArg: func() error { return preflight.InjectorMain(log) },
		dump.KeeperArg:        func() error { os.Exit(dump.KeeperMain(os.Args[2:])); return nil },
	}
}

func run() int {
	lab.MaybeInit()
	if len(os.Args) > 1 {
		if f := hidden(logger(os.Getenv("LAZYMIG_DEBUG") != "", true))[os.Args[1]]; f != nil {
			if err := f(); err != nil {
				fmt.Fprintf(os.Stderr, "lazymig %s: %v\n", os.Args[1], err)
				return exitError
			}
			return exitOK
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := newApp().RunContext(ctx, os.Args)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(os.Stderr, "lazymig: %v\n", err)
	return exitCode(err)
}

func exitCode(err error) int {
	if e, ok := errors.AsType[*exitErr](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[cli.ExitCoder](err); ok { // the library's own: a help topic that is none
		return exitUsage
	}
	return exitError
}

func newApp() *cli.App {
	a := &cli.App{
		Name:            "lazymig",
		Usage:           "move a live process to another host",
		Description:     "Exit codes: 0 done; 1 other error; 2 usage; 3 refused by the preflight; 4 failed, the process runs on the source as before; 5 failed after the handover.",
		HideVersion:     true,
		HideHelpCommand: false,
		Commands: []*cli.Command{
			migrateCommand(), agentCommand(), checkCommand(), listCommand(), statusCommand(), recoverCommand(), abortCommand(), forgetCommand(),
			keysCommand(), setupCommand(), labCommand(),
		},
		ExitErrHandler: func(*cli.Context, error) {}, // run prints and chooses the code
		OnUsageError: func(_ *cli.Context, err error, _ bool) error {
			return &exitErr{exitUsage, err}
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usage("unknown command %q; see `lazymig help`", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	usageErrors(a.Commands)
	return a
}

// usageErrors gives bad flags and unknown subcommands of all commands their exit code.
func usageErrors(all []*cli.Command) {
	for _, c := range all {
		c.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return &exitErr{exitUsage, err} }
		if len(c.Subcommands) > 0 {
			c.Action = func(c *cli.Context) error {
				if c.Args().Present() {
					return usage("unknown command %q; see `lazymig %s help`", c.Command.Name+" "+c.Args().First(), c.Command.Name)
				}
				return cli.ShowSubcommandHelp(c)
			}
		}
		usageErrors(c.Subcommands)
	}
}

// address checks an ADDR:PORT that was given for a flag.
func address(c *cli.Context, flag string) error {
	a := c.String(flag)
	if a == "" {
		return usage("%s needs --%s ADDR:PORT", c.Command.Name, flag)
	}
	if _, port, err := net.SplitHostPort(a); err != nil || port == "" {
		return usage("--%s %q is no ADDR:PORT", flag, a)
	}
	return nil
}

func logger(debug, json bool) *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelInfo}
	if debug {
		o.Level = slog.LevelDebug
	}
	if json {
		return slog.New(lograte.New(slog.NewJSONHandler(os.Stderr, o)))
	}
	return slog.New(lograte.New(slog.NewTextHandler(os.Stderr, o)))
}

// Flags that several commands have.
func stateDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "state-dir", Value: "/var/lib/lazymig", Usage: "`DIR` of the records of migrations"}
}

func tlsDirFlag() cli.Flag {
	return &cli.StringFlag{Name: "tls-dir", Value: "/etc/lazymig", Usage: "`DIR` of the certificates, as lazymig keys makes them"}
}

func criuFlag() cli.Flag {
	return &cli.StringFlag{Name: "criu", EnvVars: []string{"LAZYMIG_CRIU"}, Usage: "`FILE`: CRIU ≥ 4.2 (default: what lazymig setup installed, or in PATH)"}
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "one JSON object a line"} }

// self is this program, for the processes that it starts.
func self() (string, error) {
	p, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	return p, nil
}

func one(c *cli.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", usage("%s takes exactly one %s", c.Command.Name, what)
	}
	return c.Args().First(), nil
}

func none(c *cli.Context) error {
	if c.NArg() != 0 {
		return usage("%s takes no argument %q", c.Command.Name, c.Args().First())
	}
	return nil
}
