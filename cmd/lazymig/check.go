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
		Name: "check", Usage: "can this host, that host, this process? Nothing is moved",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "to", Usage: "agent's `ADDR:PORT`"},
			&cli.IntFlag{Name: "pid", Usage: "`PID` of a tree's root"},
			&cli.BoolFlag{Name: "accept-loss", Usage: "as in migrate"},
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
	if pid := c.Int("pid"); pid != 0 {
		rep, err := preflight.Process(c.Context, preflight.Options{PID: pid, AcceptLoss: c.Bool("accept-loss"), Log: logger(false, false)})
		if err != nil {
			return &exitErr{exitPreflight, err}
		}
		tree = &rep.Tree
		all = append(append(all, rep.Findings...), migrate.Streams(&rep.Want)...)
	}
	if to := c.String("to"); to != "" {
		there, ahead, off, err := migrate.AskFacts(c.Context, to, c.String("tls-dir"))
		if err != nil {
			return &exitErr{exitPreflight, err}
		}
		all = append(all, preflight.Compare(tree, preflight.LocalFacts(c.Context, host), there)...)
		all = append(all, preflight.Clock(ahead, off))
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
	if err := preflight.Refusals(all); err != nil {
		return &exitErr{exitPreflight, errors.New("not possible as it is; see the lines that say refuse")}
	}
	return nil
}
