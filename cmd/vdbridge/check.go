package main

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "check the structure of a .vhdx, and repair it if asked",
		ArgsUsage: "URL|FILE",
		Description: `Nothing is written unless --repair is given. Exits with 0 if the image is sound and 6 if it is damaged.
A repair replays the log and puts right what can be put right without a doubt; what is lost stays lost.

  vdbridge check a.vhdx
  vdbridge check a.vhdx --repair
  vdbridge check smb://me@server/disks/a.vhdx --json`,
		Flags: append(connectionFlags(), &cli.BoolFlag{Name: "repair", Usage: "put right what can be put right without a doubt"}, jsonFlag),
		Action: func(c *cli.Context) error {
			loc, o, err := target(c, slog.LevelError)
			if err != nil {
				return err
			}
			check := bridge.Check
			if c.Bool("repair") {
				check = bridge.Repair
			}
			r, err := check(c.Context, loc, o)
			if err != nil {
				return err
			}
			if c.Bool("json") {
				if err := printJSON(c, r); err != nil {
					return err
				}
			} else {
				printReport(c, loc, r)
			}
			if r.Damaged() {
				return errReported{cli.Exit("", ExitCorrupt)}
			}
			return nil
		},
	}
}

func printReport(c *cli.Context, loc bridge.Location, r *bridge.Report) {
	for _, line := range r.Lines() {
		printf(c, "%s\n", line)
	}
	if r.Damaged() {
		printf(c, "%s is damaged.\n", loc)
	} else {
		printf(c, "%s is sound.\n", loc)
	}
}
