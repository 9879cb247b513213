package main

import (
	"errors"
	"log/slog"
	"net"
	"net/url"
	"strings"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func nbdCommand() *cli.Command {
	return &cli.Command{
		Name:      "nbd",
		Usage:     "export a disk by NBD, for nbd-client, qemu, nbdcopy, fio …",
		ArgsUsage: "URL|FILE",
		Description: `Serves until it is interrupted, then finishes what is in flight, flushes and closes the disk. When it is
ready it prints one line, "ready nbd+unix://…" or "ready nbd://…", the URI that clients take.

  vdbridge nbd smb://me@server/disks/a.vhdx --listen unix:/run/a.sock
  nbd-client -unix /run/a.sock /dev/nbd0          (as root: the disk as /dev/nbd0)
  nbdcopy 'nbd+unix:///?socket=/run/a.sock' a.raw`,
		Flags: concat(
			[]cli.Flag{
				&cli.StringSliceFlag{Name: "listen", Usage: "`ADDRESS` for clients, unix:PATH or tcp:HOST:PORT; port 0 picks a free one; may be given several times"},
				&cli.StringFlag{Name: "export", Usage: "`NAME` of the export; clients that ask for none get it too"},
				&cli.BoolFlag{Name: "read-only", Usage: "refuse writes"},
			},
			readyFlags(), diskFlags(), initiatorFlags("`NAME` of this attachment's initiator, kept in the state directory; by default it follows from --listen"),
		),
		Action: serveNBD,
	}
}

func concat(lists ...[]cli.Flag) (all []cli.Flag) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

func serveNBD(c *cli.Context) (err error) {
	target, err := oneArg(c, "URL or file")
	if err != nil {
		return err
	}
	loc, err := bridge.ParseLocation(target)
	if err != nil {
		return err
	}
	o, err := options(c, slog.LevelWarn)
	if err != nil {
		return err
	}
	if err := need(c, "listen"); err != nil {
		return err
	}
	specs := c.StringSlice("listen")
	if o.Attachment == "" {
		o.Attachment = "nbd:" + strings.Join(specs, ",")
	}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, s := range specs {
		l, err := bridge.Listen(s)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	d, err := bridge.Open(c.Context, loc, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()

	undo := func() {}
	defer func() { undo() }()
	var readyErr error
	ctx, cancel := contextWithCancel(c)
	defer cancel()
	err = bridge.ServeNBD(ctx, d, bridge.NBDOptions{
		Name: c.String("export"), ReadOnly: o.ReadOnly, Logger: o.Logger,
		Ready: func() {
			if undo, readyErr = ready(c, nbdURI(listeners[0], c.String("export"))); readyErr != nil {
				cancel()
			}
		},
	}, listeners...)
	return errors.Join(readyErr, err)
}

// nbdURI is how clients name an export.
func nbdURI(l net.Listener, export string) string {
	a := l.Addr()
	if a.Network() == "unix" {
		return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + strings.ReplaceAll(url.QueryEscape(a.String()), "%2F", "/")
	}
	return "nbd://" + a.String() + "/" + url.PathEscape(export)
}
