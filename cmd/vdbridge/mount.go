package main

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func contextWithCancel(c *cli.Context) (context.Context, context.CancelFunc) {
	return context.WithCancel(c.Context)
}

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "show a disk as the file disk.raw in a directory (FUSE)",
		ArgsUsage: "URL|FILE DIR",
		Description: `Runs until it is interrupted or the directory is unmounted, then flushes and closes the disk. When it is ready it
prints one line, "ready DIR/disk.raw".

  vdbridge mount smb://me@server/disks/a.vhdx /mnt/a &
  mount -o loop /mnt/a/disk.raw /mnt/inside       (as root: the file system in it)
  umount /mnt/inside && vdbridge umount /mnt/a`,
		Flags: concat(
			[]cli.Flag{
				&cli.BoolFlag{Name: "read-only", Usage: "refuse writes"},
				&cli.BoolFlag{Name: "allow-other", Usage: "let other users see the directory (needs user_allow_other in /etc/fuse.conf, or root)"},
			},
			[]cli.Flag{runDirFlag()}, readyFlags(), diskFlags(), lossFlags(), initiatorFlags("`NAME` of this attachment's initiator, kept in the state directory; by default it follows from DIR"),
		),
		Action: mount,
	}
}

func mount(c *cli.Context) (err error) {
	if c.NArg() != 2 {
		return usage("give a URL or file, and a directory; 'vdbridge mount --help' has an example")
	}
	loc, err := bridge.ParseLocation(c.Args().Get(0))
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(c.Args().Get(1))
	if err != nil {
		return err
	}
	o, err := options(c, slog.LevelWarn)
	if err != nil {
		return err
	}
	if o.Attachment == "" {
		o.Attachment = "mount:" + dir
	}
	d, err := bridge.Open(c.Context, loc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	defer announce(c, "mount", dir, d, o.Logger).Close()
	undo := func() {}
	defer func() { undo() }()
	var readyErr error
	ctx, cancel := contextWithCancel(c)
	defer cancel()
	err = bridge.Mount(ctx, d, bridge.MountOptions{
		Dir: dir, ReadOnly: o.ReadOnly, AllowOther: c.Bool("allow-other"), Logger: o.Logger,
		Ready: func() {
			if undo, readyErr = ready(c, filepath.Join(dir, "disk.raw")); readyErr != nil {
				cancel()
			}
		},
	})
	return errors.Join(readyErr, err)
}

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:        "umount",
		Aliases:     []string{"unmount"},
		Usage:       "end what 'vdbridge mount' shows in a directory",
		ArgsUsage:   "DIR",
		Description: "  vdbridge umount /mnt/a",
		Action: func(c *cli.Context) error {
			dir, err := oneArg(c, "directory")
			if err != nil {
				return err
			}
			return bridge.Unmount(c.Context, dir)
		},
	}
}
