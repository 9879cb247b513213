package main

import (
	"log/slog"
	"strings"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:      "serve",
		Usage:     "offer the files of a directory by SMB 3, and its .vhdx files as shared disks",
		ArgsUsage: "DIR",
		Description: `Serves until it is interrupted. Users come from --users: lines of name:password, or name:$NT$ and
the 32 hexadecimal digits of the NT hash. Messages are always signed. It listens on loopback only
unless --listen names another address. When it is ready it prints one line, "ready smb://…".

  vdbridge serve disks --users users
  vdbridge serve disks --users users --listen 0.0.0.0:445 --share disks --encrypt
  vdbridge serve disks --keytab /etc/vdbridge.keytab --no-ntlm`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` to listen on; port 0 picks a free one", Value: "127.0.0.1:4450"},
			&cli.StringFlag{Name: "share", Usage: "`NAME` of the share", Value: "disks"},
			&cli.StringFlag{Name: "users", Usage: "`FILE` of users"},
			&cli.StringFlag{Name: "keytab", Usage: "take Kerberos, with the keys of cifs/HOST in `FILE`"},
			&cli.StringSliceFlag{Name: "krb5-user", Usage: "let `USER` (or USER@REALM) log on by Kerberos; may be repeated; without it, all users of the realm"},
			&cli.BoolFlag{Name: "krb5-rc4", Usage: "let Kerberos use RC4, which is outdated, too"},
			&cli.BoolFlag{Name: "no-ntlm", Usage: "take Kerberos only"},
			&cli.UintFlag{Name: "rsvd-version", Usage: "version of MS-RSVD; 0 offers no shared disks", Value: 1},
			&cli.StringFlag{Name: "min-dialect", Usage: "oldest SMB dialect to accept: 2.1, 3.0, 3.0.2, 3.1.1", Value: "3.0"},
			&cli.StringFlag{Name: "max-dialect", Usage: "newest SMB dialect to offer", Value: "3.1.1"},
			&cli.BoolFlag{Name: "encrypt", Usage: "refuse clients that do not encrypt"},
			&cli.BoolFlag{Name: "ca", Usage: "announce the share as continuously available: opens survive a lost connection, writes are durable at once"},
			&cli.BoolFlag{Name: "read-only", Usage: "refuse every change"},
			&cli.StringFlag{Name: "pcap", Usage: "write all SMB messages to `FILE` for Wireshark, and the session keys beside it (FILE.keys)"},
		}, readyFlags()...),
		Action: serve,
	}
}

func serve(c *cli.Context) error {
	dir, err := oneArg(c, "directory")
	if err != nil {
		return err
	}
	o := bridge.ServeOptions{
		Dir: dir, Share: c.String("share"), UsersFile: c.String("users"), Encrypt: c.Bool("encrypt"), ReadOnly: c.Bool("read-only"), CA: c.Bool("ca"),
		Keytab: c.String("keytab"), KerberosFor: c.StringSlice("krb5-user"), AllowRC4: c.Bool("krb5-rc4"), NoNTLM: c.Bool("no-ntlm"),
		Pcap: c.String("pcap"), RSVDVersion: uint32(c.Uint("rsvd-version")),
	}
	if o.MinDialect, err = bridge.ParseDialect(c.String("min-dialect")); err != nil {
		return err
	}
	if o.MaxDialect, err = bridge.ParseDialect(c.String("max-dialect")); err != nil {
		return err
	}
	if o.Logger, err = logger(c, slog.LevelWarn); err != nil {
		return err
	}
	if strings.HasPrefix(c.String("listen"), "unix:") {
		return usage("SMB is served on TCP; give --listen HOST:PORT")
	}
	srv, err := bridge.NewFileServer(o)
	if err != nil {
		return err
	}
	l, err := bridge.Listen(c.String("listen"))
	if err != nil {
		srv.Close()
		return err
	}
	undo, err := ready(c, "smb://"+l.Addr().String()+"/"+o.Share)
	defer undo()
	if err != nil {
		l.Close()
		srv.Close()
		return err
	}
	return srv.Run(c.Context, l)
}
