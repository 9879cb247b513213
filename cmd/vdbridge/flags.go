package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vdbridge/bridge"
)

// Categories of flags in help texts.
const (
	catLogon      = "Logging on"
	catConnection = "Connection"
	catDisk       = "Disk"
	catLoss       = "Losing the server"
)

// connectionFlags are those of every command that takes a URL.
func connectionFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "user", Usage: "`USER` to log on as, also DOMAIN\\USER; instead of the URL's", Category: catLogon},
		&cli.StringFlag{Name: "domain", Usage: "`DOMAIN` of the user", Category: catLogon},
		&cli.StringFlag{Name: "password-file", Usage: "read the password from the first line of `FILE` (- is standard input)", Category: catLogon},
		&cli.StringFlag{Name: "credentials", Usage: "read username=, password=, domain= from `FILE`, as mount.cifs does", Category: catLogon},
		&cli.BoolFlag{Name: "krb5", Usage: "log on by Kerberos and nothing else: with --keytab, a password that is given, or the tickets of kinit", Category: catLogon},
		&cli.StringFlag{Name: "keytab", Usage: "log on by Kerberos with the user's key in `FILE`", Category: catLogon},
		&cli.BoolFlag{Name: "no-ntlm", Usage: "never log on by NTLM: the same as --krb5", Category: catLogon},
		&cli.BoolFlag{Name: "krb5-rc4", Usage: "let Kerberos use RC4, which is outdated, too", Category: catLogon},
		&cli.BoolFlag{Name: "guest", Usage: "accept a guest session, which is neither signed nor sealed", Category: catLogon},
		&cli.BoolFlag{Name: "anonymous", Usage: "log on as nobody", Category: catLogon},
		&cli.BoolFlag{Name: "encrypt", Usage: "insist on encryption; without it messages are signed, and encrypted when the server asks", Category: catConnection},
		&cli.StringFlag{Name: "min-dialect", Usage: "oldest SMB dialect to accept: 2.0.2, 2.1, 3.0, 3.0.2, 3.1.1", Value: "3.0", Category: catConnection},
		&cli.StringFlag{Name: "max-dialect", Usage: "newest SMB dialect to offer", Value: "3.1.1", Category: catConnection},
		&cli.DurationFlag{Name: "timeout", Usage: "how long to wait for the connection", Value: 15 * time.Second, Category: catConnection},
		&cli.StringFlag{Name: "pcap", Usage: "write all SMB messages to `FILE` for Wireshark, and the session keys beside it (FILE.keys): whoever has both can read everything", Category: catConnection},
		&cli.StringFlag{Name: "state-dir", Usage: "where the identities of this host's initiators are kept", Value: bridge.DefaultStateDir(), Category: catConnection},
	}
}

// diskFlags are those of every command that opens a disk.
func diskFlags() []cli.Flag {
	return append(connectionFlags(),
		&cli.StringFlag{Name: "mode", Usage: "rsvd: as a shared disk; file: the image file, for this host alone; auto: rsvd if the server has it", Value: "auto", Category: catDisk},
		&cli.StringFlag{Name: "io", Usage: "data path of a shared disk: smb (READ and WRITE), scsi (CDBs in the tunnel), auto", Value: "auto", Category: catDisk},
		&cli.UintFlag{Name: "rsvd-version", Usage: "insist on version 1 or 2 of MS-RSVD; 0 tries 2, then 1", Category: catDisk},
	)
}

// lossFlags are those of the commands that go on until they are ended, and so see servers come and go.
func lossFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "on-loss", Usage: "what requests do while the server is lost: hold (wait until it is back), fail-after=`TIME` (wait that long), fail (the attachment ends)", Value: "hold", Category: catLoss},
		&cli.StringSliceFlag{Name: "server-address", Usage: "further `HOST:PORT` of the same server, tried in turn after that of the URL; may be given several times", Category: catLoss},
		&cli.StringFlag{Name: "handle", Usage: "what the open at the server shall survive: persistent (also the server's restart), durable (a lost connection), none; auto: as much as the server grants", Value: "auto", Category: catLoss},
		&cli.StringFlag{Name: "channels", Usage: "how many connections to use at once, up to 32, or to which addresses: `N|HOST:PORT,…`", Category: catConnection},
	}
}

// loss reads the lossFlags.
func loss(c *cli.Context, o *bridge.Options) (err error) {
	if s := c.String("on-loss"); s != "" {
		if o.OnLoss, err = bridge.ParseOnLoss(s); err != nil {
			return err
		}
	}
	if s := c.String("handle"); s != "" {
		if o.Handle, err = bridge.ParseHandleKind(s); err != nil {
			return err
		}
	}
	for _, a := range c.StringSlice("server-address") {
		addr, err := bridge.ParseServerAddress(a)
		if err != nil {
			return err
		}
		o.ServerAddresses = append(o.ServerAddresses, addr)
	}
	if s := c.String("channels"); s != "" {
		o.Channels, err = bridge.ParseChannels(s)
	}
	return err
}

// initiatorFlags choose who we are.
func initiatorFlags(usage string) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "initiator", Usage: usage, Category: catDisk},
		&cli.StringFlag{Name: "initiator-guid", Usage: "be the initiator with this `GUID`; you see to it that nobody else is", Category: catDisk},
	}
}

// options makes the options of a command from its flags.
func options(c *cli.Context, level slog.Level) (bridge.Options, error) {
	var o bridge.Options
	var err error
	if o.Logger, err = logger(c, level); err != nil {
		return o, err
	}
	o.Credentials = bridge.CredentialSource{
		User: c.String("user"), Domain: c.String("domain"), PasswordFile: c.String("password-file"), CredentialsFile: c.String("credentials"),
		Guest: c.Bool("guest"), Anonymous: c.Bool("anonymous"),
	}
	o.Kerberos = bridge.KerberosOptions{On: c.Bool("krb5") || c.Bool("no-ntlm") || c.String("keytab") != "", Keytab: c.String("keytab"), AllowRC4: c.Bool("krb5-rc4")}
	o.Encrypt = c.Bool("encrypt")
	if o.MinDialect, err = bridge.ParseDialect(c.String("min-dialect")); err != nil {
		return o, err
	}
	if o.MaxDialect, err = bridge.ParseDialect(c.String("max-dialect")); err != nil {
		return o, err
	}
	if o.MinDialect > o.MaxDialect {
		return o, usage("--min-dialect %s is newer than --max-dialect %s", c.String("min-dialect"), c.String("max-dialect"))
	}
	o.Timeout = c.Duration("timeout")
	o.Pcap = c.String("pcap")
	if m := c.String("mode"); m != "" {
		if o.Mode, err = bridge.ParseMode(m); err != nil {
			return o, err
		}
	}
	if m := c.String("io"); m != "" {
		if o.IO, err = bridge.ParseIO(m); err != nil {
			return o, err
		}
	}
	if o.RSVDVersion = uint32(c.Uint("rsvd-version")); o.RSVDVersion > 2 {
		return o, usage("--rsvd-version is 1 or 2")
	}
	o.StateDir = c.String("state-dir")
	o.Attachment = c.String("initiator")
	if g := c.String("initiator-guid"); g != "" {
		id, err := bridge.ParseGUID(g)
		if err != nil {
			return o, err
		}
		o.InitiatorID = &id
	}
	o.ReadOnly = c.Bool("read-only")
	return o, loss(c, &o)
}

// readyFlags are those of the commands that go on until they are ended.
func readyFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "ready-fd", Usage: "when ready, write the address and a newline to file descriptor `N` and close it", Value: -1, Category: "Life"},
		&cli.StringFlag{Name: "pid-file", Usage: "when ready, write the process id to `FILE`; it is removed at the end", Category: "Life"},
	}
}

// ready tells whoever waits that the service can be used: a line on standard output, the descriptor of --ready-fd, systemd. The function
// returned undoes what must not stay.
func ready(c *cli.Context, what ...string) (func(), error) {
	undo := func() {}
	if path := c.String("pid-file"); path != "" {
		if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
			return undo, fmt.Errorf("pid file: %w", err)
		}
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		undo = func() { _ = os.Remove(path) }
	}
	if fd := c.Int("ready-fd"); fd >= 0 {
		f := os.NewFile(uintptr(fd), "ready-fd")
		if f == nil {
			return undo, usage("--ready-fd %d is not a file descriptor", fd)
		}
		_, err := fmt.Fprintln(f, strings.Join(what, "\n"))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return undo, usage("--ready-fd %d cannot be written: %v", fd, err)
		}
	}
	bridge.NotifySystemd("READY=1\nSTATUS=" + strings.ReplaceAll(strings.Join(what, " "), "\n", " "))
	for _, w := range what {
		printf(c, "ready %s\n", w)
	}
	return undo, nil
}
