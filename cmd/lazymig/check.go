package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/lazymig/lazymig/internal/criu"
	"github.com/lazymig/lazymig/migrate"
	"github.com/lazymig/lazymig/preflight"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "can this host, that host, this process? With both --to and --pid also: what would each --mode come to? Nothing is moved",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "agent's `ADDR:PORT`"},
			&cli.IntFlag{Name: "pid", Usage: "`PID` of a tree's root"},
			&cli.BoolFlag{Name: "accept-loss", Usage: "as in migrate"},
			maxDowntimeFlag(),
			stateDirFlag(), tlsDirFlag(), criuFlag(), jsonFlag(),
		},
		Action: doCheck,
	}
}

func doCheck(c *cli.Context) error {
	if err := none(c); err != nil {
		return err
	}
	if c.IsSet("to") {
		if err := address(c, "to"); err != nil {
			return err
		}
	}
	if c.IsSet("pid") && c.Int("pid") < 1 {
		return usage("--pid %d is no process", c.Int("pid"))
	}
	path, _, err := criu.Find(c.String("criu"))
	if err != nil {
		path = "" // the host check says what is missing
	}
	host := preflight.HostOptions{CRIUPath: path, StateDir: c.String("state-dir")}
	all := preflight.Host(c.Context, host)
	tree := &preflight.Tree{}
	var outlook *migrate.Outlook
	if pid := c.Int("pid"); pid != 0 {
		rep, err := preflight.Process(c.Context, preflight.Options{PID: pid, AcceptLoss: c.Bool("accept-loss"), Log: logger(false, false)})
		if err != nil {
			return &exitErr{exitPreflight, err}
		}
		tree = &rep.Tree
		all = append(append(all, rep.Findings...), migrate.Streams(&rep.Want)...)
	}
	if to := c.String("to"); to != "" {
		measured := tree
		if preflight.Refusals(all) != nil {
			measured = &preflight.Tree{} // what can't be moved is let alone
		}
		exe, err := self()
		if err != nil {
			return err
		}
		there, err := migrate.AskTarget(c.Context, to, c.String("tls-dir"), measured, c.Duration("max-downtime"), exe, logger(false, false))
		if err != nil {
			return &exitErr{exitPreflight, err}
		}
		all = append(all, preflight.Compare(tree, preflight.LocalFacts(c.Context, host), there.Facts)...)
		all = append(all, preflight.Clock(there.Ahead, there.Off))
		outlook = there.Outlook
	}
	for _, f := range all {
		if c.Bool("json") {
			b, err := json.Marshal(f)
			if err != nil {
				return fmt.Errorf("encode finding: %w", err)
			}
			fmt.Println(string(b))
		} else {
			fmt.Println(f)
		}
	}
	if outlook != nil {
		if err := printOutlook(outlook, c.Bool("json")); err != nil {
			return err
		}
	}
	if err := preflight.Refusals(all); err != nil {
		return &exitErr{exitPreflight, errors.New("not possible as it is; see the lines that say refuse")}
	}
	return nil
}

// printOutlook tells what each mode is expected to come to.
func printOutlook(o *migrate.Outlook, asJSON bool) error {
	if asJSON {
		b, err := json.Marshal(struct {
			Code  string          `json:"code"`
			Level preflight.Level `json:"level"`
			What  string          `json:"what"`
			*migrate.Outlook
		}{"forecast", preflight.Info, "what each mode is expected to come to", o})
		if err != nil {
			return fmt.Errorf("encode forecast: %w", err)
		}
		fmt.Println(string(b))
		return nil
	}
	fmt.Printf("forecast: %s\n", o.Text)
	fmt.Printf("  %-8s %10s %10s %10s %12s %10s\n", "mode", "frozen", "before", "after", "threads wait", "sent")
	for _, f := range o.Forecasts {
		note := ""
		if f.Mode == o.Best {
			note = "  <- auto would choose this"
		}
		fmt.Printf("  %-8s %7.0f ms %8.1f s %8.1f s %9.0f ms %7d MB%s\n", f.Mode, f.DowntimeMS, f.AheadMS/1000, f.DrainMS/1000, f.StallMS, f.Bytes>>20, note)
	}
	return nil
}
