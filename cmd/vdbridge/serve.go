package main

import (
	"io"
	"log/slog"
	"net"
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
  vdbridge serve disks --keytab /etc/vdbridge.keytab --no-ntlm
  vdbridge serve disks --users users --ca --standby --listen 10.0.0.2:445`,
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "listen", Usage: "`ADDRESS` to listen on; port 0 picks a free one; may be repeated", Value: cli.NewStringSlice("127.0.0.1:4450")},
			&cli.StringFlag{Name: "share", Usage: "`NAME` of the share", Value: "disks"},
			&cli.StringFlag{Name: "users", Usage: "`FILE` of users"},
			&cli.StringFlag{Name: "keytab", Usage: "take Kerberos, with the keys of cifs/HOST in `FILE`"},
			&cli.StringSliceFlag{Name: "krb5-user", Usage: "let `USER` (or USER@REALM) log on by Kerberos; may be repeated; without it, all users of the realm"},
			&cli.BoolFlag{Name: "krb5-rc4", Usage: "let Kerberos use RC4, which is outdated, too"},
			&cli.BoolFlag{Name: "no-ntlm", Usage: "take Kerberos only"},
			&cli.DurationFlag{Name: "session-time", Usage: "make clients prove who they are again after `TIME`, such as 8h; with Kerberos, they must when their tickets end anyway"},
			&cli.UintFlag{Name: "rsvd-version", Usage: "version of MS-RSVD; 0 offers no shared disks", Value: 1},
			&cli.StringFlag{Name: "min-dialect", Usage: "oldest SMB dialect to accept: 2.1, 3.0, 3.0.2, 3.1.1", Value: "3.0"},
			&cli.StringFlag{Name: "max-dialect", Usage: "newest SMB dialect to offer", Value: "3.1.1"},
			&cli.BoolFlag{Name: "encrypt", Usage: "refuse clients that do not encrypt"},
			&cli.BoolFlag{Name: "ca", Usage: "announce the share as continuously available: opens survive a lost connection and a restart, writes are durable at once"},
			&cli.StringFlag{Name: "state-dir", Usage: "`DIR` for what survives the server; all servers that share it are one to clients (default: a hidden directory in DIR)"},
			&cli.BoolFlag{Name: "standby", Usage: "with --ca: wait until the server that uses the state directory has ended, then take over"},
			&cli.BoolFlag{Name: "discard-state", Usage: "put a database of persistent opens aside that cannot be read, and begin without"},
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
		SessionTime: c.Duration("session-time"), Pcap: c.String("pcap"), RSVDVersion: uint32(c.Uint("rsvd-version")),
		StateDir: c.String("state-dir"), Standby: c.Bool("standby"), DiscardState: c.Bool("discard-state"),
	}
	if o.SessionTime < 0 {
		return usage("--session-time is a time after a logon, and cannot be negative")
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
	addrs := c.StringSlice("listen")
	for _, a := range addrs {
		if strings.HasPrefix(a, "unix:") {
			return usage("SMB is served on TCP; give --listen HOST:PORT")
		}
	}
	if o.Standby {
		if !o.CA {
			return usage("--standby is for servers with --ca: others serve at once")
		}
		return serveStandby(c, o, addrs)
	}
	srv, err := bridge.NewFileServer(o)
	if err != nil {
		return err
	}
	var ls []net.Listener
	for _, a := range addrs {
		l, err := bridge.Listen(a)
		if err != nil {
			closeAll(ls)
			srv.Close()
			return err
		}
		ls = append(ls, l)
	}
	return runServer(c, o, srv, ls)
}

func closeAll[T io.Closer](list []T) {
	for _, l := range list {
		l.Close()
	}
}

// runServer serves until the end.
func runServer(c *cli.Context, o bridge.ServeOptions, srv *bridge.FileServer, ls []net.Listener) error {
	var urls []string
	for _, l := range ls {
		urls = append(urls, "smb://"+l.Addr().String()+"/"+o.Share)
	}
	undo, err := ready(c, urls...)
	defer undo()
	if err != nil {
		closeAll(ls)
		srv.Close()
		return err
	}
	return srv.Run(c.Context, ls...)
}

// serveStandby takes the addresses, so that nothing can be wrong with them later, and listens when the server before has ended. Until then clients are
// refused at once, and go on to the next address.
func serveStandby(c *cli.Context, o bridge.ServeOptions, addrs []string) error {
	var taken []*bridge.Reservation
	defer func() { closeAll(taken) }()
	for _, a := range addrs {
		r, err := bridge.Reserve(a)
		if err != nil {
			return err
		}
		taken = append(taken, r)
		printf(c, "standby %s\n", a)
	}
	bridge.NotifySystemd("READY=1\nSTATUS=standing by")
	srv, err := bridge.AwaitFileServer(c.Context, o)
	if err != nil {
		if c.Context.Err() != nil {
			return nil // asked to end while it waited
		}
		return err
	}
	var ls []net.Listener
	for _, r := range taken {
		l, err := r.Listen()
		if err != nil {
			closeAll(ls)
			srv.Close()
			return err
		}
		ls = append(ls, l)
	}
	return runServer(c, o, srv, ls)
}
