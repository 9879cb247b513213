package main

import (
	"errors"
	"log/slog"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure how fast a disk is through this program",
		ArgsUsage: "URL|FILE",
		Description: `Reads unless --write is given, which destroys what is on the disk.

  vdbridge bench smb://me@server/disks/a.vhdx --size 4K --depth 32
  vdbridge bench smb://me@server/disks/scratch.vhdx --size 1M --depth 8 --sequential --write --yes`,
		Flags: append(diskFlags(),
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of one request", Value: "4K"},
			&cli.IntFlag{Name: "depth", Usage: "requests in flight", Value: 32},
			&cli.DurationFlag{Name: "duration", Usage: "how long to measure", Value: 5 * time.Second},
			&cli.BoolFlag{Name: "sequential", Usage: "one request behind the other instead of random places"},
			&cli.BoolFlag{Name: "write", Usage: "write random data; what is on the disk is lost"},
			&cli.BoolFlag{Name: "yes", Usage: "do not ask before writing"},
			jsonFlag,
		),
		Action: bench,
	}
}

func bench(c *cli.Context) (err error) {
	loc, o, err := target(c, slog.LevelError)
	if err != nil {
		return err
	}
	b := bridge.BenchOptions{Depth: c.Int("depth"), Duration: c.Duration("duration"), Sequential: c.Bool("sequential"), Write: c.Bool("write")}
	size, err := parseSize(c.String("size"))
	if err != nil {
		return err
	}
	b.Size = int(min(size, 1<<30))
	if b.Write && !c.Bool("yes") {
		return usage("--write destroys what is on %s; say --yes if that is meant", loc)
	}
	o.ReadOnly = !b.Write
	d, err := bridge.Open(c.Context, loc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	r, err := bridge.Bench(c.Context, d, b)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c, r)
	}
	printf(c, "%s\n", r)
	return nil
}
