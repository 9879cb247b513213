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
			tlsFlags(),
			[]cli.Flag{runDirFlag()}, readyFlags(), diskFlags(), lossFlags(), initiatorFlags("`NAME` of this attachment's initiator, kept in the state directory; by default it follows from --listen"),
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
	encryption, err := tlsOptions(c)
	if err != nil {
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

	defer announce(c, "nbd", strings.Join(specs, ","), d, o.Logger).Close()

	undo := func() {}
	defer func() { undo() }()
	var readyErr error
	ctx, cancel := contextWithCancel(c)
	defer cancel()
	err = bridge.ServeNBD(ctx, d, bridge.NBDOptions{
		Name: c.String("export"), ReadOnly: o.ReadOnly, TLS: encryption, Logger: o.Logger,
		Ready: func() {
			if undo, readyErr = ready(c, nbdURI(listeners[0], c.String("export"), encryption)); readyErr != nil {
				cancel()
			}
		},
	}, listeners...)
	return errors.Join(readyErr, err)
}

const catTLS = "Encryption of NBD"

// tlsFlags say whether NBD clients may or must encrypt.
func tlsFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "tls", Usage: "off; on: clients may encrypt; require: they must. on with --tls-certificates unless said otherwise", Category: catTLS},
		&cli.StringFlag{Name: "tls-certificates", Usage: "`DIR` with server-cert.pem and server-key.pem", Category: catTLS},
		&cli.BoolFlag{Name: "tls-verify-peer", Usage: "admit only clients with a certificate that DIR/ca-cert.pem has signed; implies --tls require", Category: catTLS},
		&cli.StringFlag{Name: "tls-psk", Usage: "admit only clients that know one of the pre-shared keys in `FILE`, lines of NAME:KEY in hexadecimal digits, as psktool makes them", Category: catTLS},
	}
}

func tlsOptions(c *cli.Context) (bridge.NBDTLS, error) {
	dir, verify, require := c.String("tls-certificates"), c.Bool("tls-verify-peer"), false
	switch mode := c.String("tls"); mode {
	case "", "on":
	case "require":
		require = true
	case "off":
		if verify {
			return bridge.NBDTLS{}, usage("--tls-verify-peer needs TLS, and --tls is off")
		}
		return bridge.NBDTLS{}, nil
	default:
		return bridge.NBDTLS{}, usage("--tls %q is not known; it is off, on or require", mode)
	}
	if psk := c.String("tls-psk"); psk != "" {
		if dir != "" || verify {
			return bridge.NBDTLS{}, usage("NBD clients have either certificates or pre-shared keys: leave out --tls-psk, or the other --tls flags")
		}
		return bridge.LoadNBDKeys(psk)
	}
	if dir == "" {
		if c.String("tls") != "" || verify {
			return bridge.NBDTLS{}, usage("TLS needs --tls-certificates DIR, a directory with server-cert.pem and server-key.pem, or --tls-psk FILE")
		}
		return bridge.NBDTLS{}, nil
	}
	return bridge.LoadNBDTLS(dir, verify, require)
}

// nbdURI is how clients name an export.
func nbdURI(l net.Listener, export string, encryption bridge.NBDTLS) string {
	scheme := "nbd"
	if encryption.Required() {
		scheme = "nbds"
	}
	a := l.Addr()
	if a.Network() == "unix" {
		return scheme + "+unix:///" + url.PathEscape(export) + "?socket=" + strings.ReplaceAll(url.QueryEscape(a.String()), "%2F", "/")
	}
	return scheme + "://" + a.String() + "/" + url.PathEscape(export)
}
