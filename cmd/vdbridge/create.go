package main

import (
	"log/slog"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func createCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "make a new .vhdx",
		ArgsUsage: "URL|FILE [SIZE]",
		Description: `The image is dynamic: its blocks get space when they are written. An existing file is never overwritten.

  vdbridge create a.vhdx --size 10G
  vdbridge create smb://me@server/disks/a.vhdx 500G --sector 4096
  vdbridge create child.vhdx --parent a.vhdx

With --parent it is a differencing image: it shows what the parent has until something is written, and the
parent must not be written to any more. Both lie on the same machine or share.`,
		Flags: append(connectionFlags(),
			&cli.StringFlag{Name: "size", Usage: "`SIZE` of the disk: 512M, 10G, 1.5T; at most 64T"},
			&cli.StringFlag{Name: "parent", Usage: "make a differencing image over this `URL|FILE`; size and sectors are the parent's, and its blocks have 2M unless said otherwise"},
			&cli.BoolFlag{Name: "fixed", Usage: "give all blocks their space now"},
			&cli.StringFlag{Name: "block-size", Usage: "1M to 256M, a power of two", Value: "32M"},
			&cli.IntFlag{Name: "sector", Usage: "logical sector: 512 or 4096", Value: 512},
			&cli.IntFlag{Name: "physical-sector", Usage: "physical sector: 512 or 4096", Value: 4096},
		),
		Action: create,
	}
}

func create(c *cli.Context) error {
	size := c.String("size")
	switch n := c.NArg(); {
	case n == 2 && size == "":
		size = c.Args().Get(1)
	case n != 1:
		return usage("give one URL or file, and a size; 'vdbridge create --help' has an example")
	}
	if c.IsSet("parent") {
		return createChild(c, size)
	}
	if size == "" {
		return usage("say how large the disk is to be, for example --size 10G")
	}
	loc, err := bridge.ParseLocation(c.Args().First())
	if err != nil {
		return err
	}
	o, err := options(c, slog.LevelError)
	if err != nil {
		return err
	}
	co := bridge.CreateOptions{Fixed: c.Bool("fixed"), LogicalSector: c.Int("sector"), PhysicalSector: c.Int("physical-sector")}
	if co.Size, err = parseSize(size); err != nil {
		return err
	}
	if co.BlockSize, err = parseSize(c.String("block-size")); err != nil {
		return err
	}
	if err := bridge.Create(c.Context, loc, o, co); err != nil {
		return err
	}
	printf(c, "created %s, %s\n", loc, formatSize(co.Size))
	return nil
}

func createChild(c *cli.Context, size string) error {
	for _, f := range []string{"fixed", "sector", "physical-sector"} {
		if c.IsSet(f) {
			return usage("--%s does not go with --parent: that comes from the parent", f)
		}
	}
	loc, err := bridge.ParseLocation(c.Args().First())
	if err != nil {
		return err
	}
	parent, err := bridge.ParseLocation(c.String("parent"))
	if err != nil {
		return err
	}
	o, err := options(c, slog.LevelError)
	if err != nil {
		return err
	}
	var co bridge.ChildOptions
	if size != "" {
		if co.Size, err = parseSize(size); err != nil {
			return err
		}
	}
	if c.IsSet("block-size") {
		if co.BlockSize, err = parseSize(c.String("block-size")); err != nil {
			return err
		}
	}
	n, err := bridge.CreateChild(c.Context, loc, parent, o, co)
	if err != nil {
		return err
	}
	printf(c, "created %s, %s, over %s\n", loc, formatSize(n), parent)
	return nil
}
