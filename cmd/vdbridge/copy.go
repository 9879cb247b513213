package main

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

// catNew are the flags that say how a new image is made.
const catNew = "New image"

func copyFlags() []cli.Flag {
	return concat(
		[]cli.Flag{
			&cli.BoolFlag{Name: "force", Usage: "overwrite what is at the destination"},
			&cli.BoolFlag{Name: "resume", Usage: "go on with a copy that was interrupted"},
			&cli.IntFlag{Name: "workers", Usage: "requests in flight on each side", Value: 8},
			&cli.StringFlag{Name: "from-format", Usage: "how the source lies in its file: vhdx, vhd, raw; by default its name tells"},
			&cli.StringFlag{Name: "format", Usage: "what to make: vhdx, raw; by default the destination's name tells"},
			&cli.BoolFlag{Name: "fixed", Usage: "give all blocks their space now", Category: catNew},
			&cli.StringFlag{Name: "block-size", Usage: "1M to 256M, a power of two", Value: "32M", Category: catNew},
			&cli.IntFlag{Name: "sector", Usage: "logical sector: 512 or 4096", Value: 512, Category: catNew},
			&cli.IntFlag{Name: "physical-sector", Usage: "physical sector: 512 or 4096", Value: 4096, Category: catNew},
		},
		progressFlags(), diskFlags(),
	)
}

func copyCommand() *cli.Command {
	return &cli.Command{
		Name:      "copy",
		Usage:     "copy a disk: files, images, shares, devices and NBD exports, in any pairing",
		ArgsUsage: "SOURCE DESTINATION",
		Description: `Parts that are known to be zeros are neither read nor written. Nothing is overwritten without --force. After
Ctrl-C, or when the machine went down, the same command with --resume goes on where it was.

  vdbridge copy smb://me@server/disks/a.vhdx ./a.raw
  vdbridge copy a.img smb://me@server/disks/new.vhdx --block-size 2M
  vdbridge copy 'nbd+unix:///?socket=/run/a.sock' a.vhdx --resume`,
		Flags:  copyFlags(),
		Action: copyDisk,
	}
}

func convertCommand() *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "make an image of another kind of a disk: fixed or dynamic, raw or .vhdx, with other blocks",
		ArgsUsage: "SOURCE DESTINATION",
		Description: `The source stays as it is. A differencing image becomes one without a parent.

  vdbridge convert a.vhdx fixed.vhdx --fixed
  vdbridge convert child.vhdx whole.vhdx --block-size 2M
  vdbridge convert a.vhdx a.img`,
		Flags:  copyFlags(),
		Action: copyDisk,
	}
}

func copyDisk(c *cli.Context) (err error) {
	if c.NArg() != 2 {
		return usage("give a source and a destination; '%s --help' has an example", c.Command.HelpName)
	}
	var ends [2]bridge.Endpoint
	for i := range ends {
		if ends[i], err = bridge.ParseEndpoint(c.Args().Get(i)); err != nil {
			return err
		}
	}
	var co bridge.CopyOptions
	if co.Opts, err = options(c, slog.LevelError); err != nil {
		return err
	}
	if co.From, err = bridge.ParseFormat(c.String("from-format")); err != nil {
		return err
	}
	if co.To, err = bridge.ParseFormat(c.String("format")); err != nil {
		return err
	}
	co.Force, co.Resume, co.Workers = c.Bool("force"), c.Bool("resume"), c.Int("workers")
	switch {
	case co.Force && co.Resume:
		return usage("--force begins again and --resume goes on: say one of them")
	case co.Workers < 1 || co.Workers > 64:
		return usage("--workers is 1 to 64")
	}
	co.Create = bridge.CreateOptions{Fixed: c.Bool("fixed"), LogicalSector: c.Int("sector"), PhysicalSector: c.Int("physical-sector")}
	if co.Create.BlockSize, err = parseSize(c.String("block-size")); err != nil {
		return err
	}
	p, err := newProgress(c, c.Command.Name+" to "+ends[1].String())
	if err != nil {
		return err
	}
	co.Progress = func(now bridge.CopyProgress) { p.set(now.Done, now.Total, now.Resumed) }
	got, err := bridge.Copy(c.Context, ends[0], ends[1], co)
	p.end(err)
	if err != nil {
		return err
	}
	p.say("%s to %s: %s, of which %s are data\n", map[string]string{"copy": "copied", "convert": "converted"}[c.Command.Name], ends[1], formatSize(got.Total), formatSize(got.Data))
	return nil
}
