package bridge

import (
	"log/slog"
	"net"
	"os"
	"time"

	"vdbridge/rsvd"
	"vdbridge/smb/wire"
)

// Options say how a disk, a file or a share is reached. The zero value is safe: SMB 3.0 to 3.1.1, signed, no guest.
type Options struct {
	Credentials CredentialSource
	Kerberos    KerberosOptions
	Encrypt     bool         // insist on encryption
	MinDialect  wire.Dialect // 0 = 3.0
	MaxDialect  wire.Dialect // 0 = 3.1.1
	Timeout     time.Duration
	Pcap        string // capture of all messages; the session keys go to the same name with ".keys"

	Mode        Mode
	IO          rsvd.IO
	RSVDVersion uint32 // 0 = 2, then 1
	ReadOnly    bool

	// Who we are to a shared disk: InitiatorID if it is given; otherwise the identity that StateDir keeps under the name Attachment; otherwise,
	// with no name, a random one.
	InitiatorID    *[16]byte
	Attachment     string
	ShareInitiator bool // also if another process is this initiator
	StateDir       string

	Logger *slog.Logger // nil = silent
}

func (o *Options) logger() *slog.Logger {
	if o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// initiator finds out who we are.
func (o *Options) initiator(loc Location) (*Initiator, error) {
	switch {
	case o.InitiatorID != nil:
		return &Initiator{ID: *o.InitiatorID, Host: hostName()}, nil
	case o.Attachment == "":
		return RandomInitiator()
	}
	dir := o.StateDir
	if dir == "" {
		dir = DefaultStateDir()
	}
	return AcquireInitiator(dir, loc, o.Attachment, o.ShareInitiator)
}

// ParseDialect reads 2.0.2, 2.1, 3.0, 3.0.2 or 3.1.1.
func ParseDialect(s string) (wire.Dialect, error) {
	for _, d := range []wire.Dialect{wire.Dialect202, wire.Dialect210, wire.Dialect300, wire.Dialect302, wire.Dialect311} {
		if s == d.String() {
			return d, nil
		}
	}
	if s == "" {
		return 0, nil
	}
	return 0, Usagef("the SMB dialect %q is not known; it is 2.0.2, 2.1, 3.0, 3.0.2 or 3.1.1", s)
}

// ParseIO reads auto, smb or scsi.
func ParseIO(s string) (rsvd.IO, error) {
	for io := rsvd.IOAuto; io <= rsvd.IOSCSI; io++ {
		if s == io.String() {
			return io, nil
		}
	}
	return 0, Usagef("the data path %q is not known; it is auto, smb or scsi", s)
}

// NotifySystemd tells the service manager about the state of the process, if one asked for it (sd_notify(3)).
func NotifySystemd(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}
