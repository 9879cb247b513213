package main

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func compactCommand() *cli.Command {
	return &cli.Command{
		Name:      "compact",
		Usage:     "make the file of a .vhdx as small as it can be",
		ArgsUsage: "URL|FILE",
		Description: `Space that trims have given back leaves the file. With --find-zeros every block is read, and those that hold
only zeros are given back first. After Ctrl-C the image is sound, and the same command goes on.

  vdbridge compact a.vhdx --find-zeros`,
		Flags: concat(
			[]cli.Flag{&cli.BoolFlag{Name: "find-zeros", Usage: "give blocks back that hold only zeros, which reads all of them"}},
			progressFlags(), connectionFlags(),
		),
		Action: func(c *cli.Context) error {
			loc, o, err := target(c, slog.LevelError)
			if err != nil {
				return err
			}
			p, err := newProgress(c, "compact "+loc.String())
			if err != nil {
				return err
			}
			before, after, err := bridge.Compact(c.Context, loc, o, c.Bool("find-zeros"), func(done, total int64) { p.set(done, total, 0) })
			p.end(err)
			if err != nil {
				return err
			}
			p.say("%s: the file had %s, and has %s\n", loc, formatSize(before), formatSize(after))
			return nil
		},
	}
}

func resizeCommand() *cli.Command {
	return &cli.Command{
		Name:      "resize",
		Usage:     "change the size of the disk in a .vhdx",
		ArgsUsage: "URL|FILE SIZE",
		Description: `New space reads as zeros. Data are not cut off unless --discard is given.

  vdbridge resize a.vhdx 20G`,
		Flags: append(connectionFlags(), &cli.BoolFlag{Name: "discard", Usage: "cut off what is behind the new end, data too"}),
		Action: func(c *cli.Context) error {
			if c.NArg() != 2 {
				return usage("give one URL or file, and a size; 'vdbridge resize --help' has an example")
			}
			loc, err := bridge.ParseLocation(c.Args().First())
			if err != nil {
				return err
			}
			size, err := parseSize(c.Args().Get(1))
			if err != nil {
				return err
			}
			o, err := options(c, slog.LevelError)
			if err != nil {
				return err
			}
			before, err := bridge.Resize(c.Context, loc, o, size, c.Bool("discard"))
			if err != nil {
				return err
			}
			printf(c, "%s: the disk had %s, and has %s\n", loc, formatSize(before), formatSize(size))
			return nil
		},
	}
}

func mergeCommand() *cli.Command {
	return &cli.Command{
		Name:      "merge",
		Usage:     "copy what a differencing .vhdx has into its parent",
		ArgsUsage: "URL|FILE",
		Description: `Afterwards the parent shows what the child shows, which is not needed any more. Other children of the parent
are lost. After Ctrl-C child and parent together show the same as before, and the same command goes on.

  vdbridge merge child.vhdx`,
		Flags: concat(progressFlags(), connectionFlags()),
		Action: func(c *cli.Context) error {
			loc, o, err := target(c, slog.LevelError)
			if err != nil {
				return err
			}
			p, err := newProgress(c, "merge "+loc.String())
			if err != nil {
				return err
			}
			parent, err := bridge.Merge(c.Context, loc, o, func(done, total int64) { p.set(done, total, 0) })
			p.end(err)
			if err != nil {
				return err
			}
			p.say("%s is merged into %s, and not needed any more\n", loc, parent)
			return nil
		},
	}
}
