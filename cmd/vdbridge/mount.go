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
		Usage:     "show a disk, a share or a folder in a directory (FUSE), or mount the file system inside a disk",
		ArgsUsage: "URL|FILE|FOLDER [DIR]",
		Description: `A disk is shown as disk.raw, partitions/1 and so on, info.json and reservations. A share or folder is
shown as it is, and beside every virtual disk, such as a.vhdx, there is a folder a.vhdx.d with these files.
With --contents the file system inside the disk is mounted (as root). It runs until it is interrupted or the
directory is unmounted, then flushes and closes. When it is ready it prints one line, "ready DIR/disk.raw".

  vdbridge mount smb://me@server/disks/a.vhdx /mnt/a &
  vdbridge mount ./a.vhdx --contents /mnt/inside --read-only &
  vdbridge mount smb://me@server/disks /mnt/share &
  vdbridge umount /mnt/inside

A shared disk that holds a file system for one host (ext4, XFS, NTFS …) is not opened for writing unless no
other host can write to it: --reserve takes a reservation for that, --mode file opens the image for this host
alone, --read-only does without writing. --i-know does not ask.`,
		Flags: concat(
			[]cli.Flag{
				&cli.BoolFlag{Name: "read-only", Usage: "refuse writes"},
				&cli.BoolFlag{Name: "allow-other", Usage: "let other users see the directory (needs user_allow_other in /etc/fuse.conf, or root)"},
				&cli.StringFlag{Name: "contents", Usage: "mount the file system inside the disk on `DIR`; the disk itself is shown only if another directory is given for it"},
				&cli.IntFlag{Name: "partition", Usage: "with --contents: the partition `N` to mount; otherwise the only one that can be mounted, or the largest"},
				&cli.StringFlag{Name: "options", Usage: "with --contents: `OPTIONS` for the file system, separated by commas"},
				&cli.BoolFlag{Name: "reserve", Usage: "reserve a shared disk, so that no other host can write to it while it is mounted"},
				&cli.BoolFlag{Name: "i-know", Usage: "write to a shared disk whatever it holds: you see to it that no other host does"},
				&cli.StringFlag{Name: "format", Usage: "how the disk lies in its file: vhdx, vhd, raw; by default its name tells"},
				&cli.IntFlag{Name: "max-disks", Usage: "of a share or folder: how many disks may be open at once", Value: 16},
			},
			[]cli.Flag{runDirFlag()}, readyFlags(), diskFlags(), lossFlags(), initiatorFlags("`NAME` of this attachment's initiator, kept in the state directory; by default it follows from DIR"),
		),
		Action: mount,
	}
}

func mount(c *cli.Context) (err error) {
	contents := c.String("contents")
	if c.NArg() != 2 && !(c.NArg() == 1 && contents != "") {
		return usage("give a URL or file, and a directory; 'vdbridge mount --help' has an example")
	}
	if contents == "" && (c.IsSet("partition") || c.IsSet("options")) {
		return usage("--partition and --options belong to --contents DIR")
	}
	if c.Int("partition") < 0 {
		return usage("--partition counts from 1")
	}
	loc, err := bridge.ParseLocation(c.Args().Get(0))
	if err != nil {
		return err
	}
	format, err := bridge.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	mo := bridge.MountOptions{ReadOnly: c.Bool("read-only"), AllowOther: c.Bool("allow-other")}
	where := contents
	if dir := c.Args().Get(1); dir != "" {
		if mo.Dir, err = filepath.Abs(dir); err != nil {
			return err
		}
		where = mo.Dir
	}
	if contents != "" {
		if contents, err = filepath.Abs(contents); err != nil {
			return err
		}
		if contents == mo.Dir {
			return usage("--contents needs a directory of its own, not the one where the disk is shown")
		}
	}
	o, err := options(c, slog.LevelWarn)
	if err != nil {
		return err
	}
	mo.Logger = o.Logger
	if where, err = filepath.Abs(where); err != nil {
		return err
	}
	if o.Attachment == "" {
		o.Attachment = "mount:" + where
	}
	undo := func() {}
	defer func() { undo() }()
	var readyErr error
	ctx, cancel := contextWithCancel(c)
	defer cancel()
	tell := func(what string) func() {
		return func() {
			if undo, readyErr = ready(c, what); readyErr != nil {
				cancel()
			}
		}
	}
	if bridge.IsFolder(loc, format) {
		if contents != "" || c.Bool("reserve") {
			return usage("--contents and --reserve are for one disk, and %s is a folder", loc)
		}
		mo.Ready = tell(mo.Dir)
		return errors.Join(bridge.MountTree(ctx, loc, o, bridge.MountTreeOptions{MountOptions: mo, Know: c.Bool("i-know"), MaxDisks: c.Int("max-disks")}), readyErr)
	}
	d, err := bridge.OpenFormat(ctx, loc, o, format)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	defer announce(c, "mount", where, d, o.Logger).Close()
	release, err := bridge.GuardWrites(ctx, d, c.Bool("reserve"), c.Bool("i-know"))
	if err != nil {
		return err
	}
	if release != nil {
		defer func() { err = errors.Join(err, release(context.WithoutCancel(ctx))) }()
	}
	if contents != "" {
		mo.Ready = tell(contents)
		err = bridge.MountContents(ctx, d, mo, bridge.ContentsOptions{Dir: contents, Partition: c.Int("partition"), Options: c.String("options")})
	} else {
		mo.Ready = tell(filepath.Join(mo.Dir, "disk.raw"))
		err = bridge.Mount(ctx, d, mo)
	}
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
