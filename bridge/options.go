package bridge

import (
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdbridge/client"
	"vdbridge/client/link"
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

	// What is done when the server is lost. The zero value fails at once.
	OnLoss          link.Policy
	ServerAddresses []string      // further addresses of the same server, host:port, tried in turn after that of the URL
	ServerTimeout   time.Duration // of silence, after which it is taken for lost; 0 = 20 s
	Handle          HandleKind    // what the open at the server shall survive
	Channels        client.ChannelOptions

	Logger *slog.Logger // nil = silent

	last *previousSession // set by Open for an initiator that is kept

	pulse time.Duration // how often the server is asked for a sign of life; 0 = usual; for tests
}

// HandleKind says what kind of open is asked for. A server that cannot have it gives the next lesser one.
type HandleKind int

// The kinds.
const (
	HandleAuto       HandleKind = iota // persistent, where OnLoss holds; otherwise none
	HandlePersistent                   // survives the server's restart
	HandleDurable                      // survives the connection
	HandleNone
)

var handleKinds = [...]string{"auto", "persistent", "durable", "none"}

// String is the value on a command line.
func (k HandleKind) String() string { return handleKinds[k] }

// ParseHandleKind is the reverse of String.
func ParseHandleKind(s string) (HandleKind, error) {
	if i := slices.Index(handleKinds[:], s); i >= 0 {
		return HandleKind(i), nil
	}
	return 0, Usagef("a handle of the kind %q is not known; it is auto, persistent, durable or none", s)
}

// durable is what CREATE asks for. timeout is how long the server shall keep the open.
func (o *Options) durable(timeout time.Duration) *client.DurableRequest {
	kind := o.Handle
	if kind == HandleAuto && o.OnLoss.Holds() {
		kind = HandlePersistent
	}
	if kind == HandleAuto || kind == HandleNone {
		return nil
	}
	return &client.DurableRequest{Persistent: kind == HandlePersistent, Timeout: timeout}
}

// maxChannels is how many connections a session may have. [MS-SMB2] 3.3.5.5.2 leaves it to the server; Windows has 32.
const maxChannels = 32

// ParseChannels reads a number of connections, or their addresses.
func ParseChannels(s string) (client.ChannelOptions, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > maxChannels {
			return client.ChannelOptions{}, Usagef("%d channels: there can be 1 to %d", n, maxChannels)
		}
		return client.ChannelOptions{Count: n}, nil
	}
	var o client.ChannelOptions
	for a := range strings.SplitSeq(s, ",") {
		addr, err := ParseServerAddress(a)
		if err != nil {
			return o, Usagef("--channels %s: give a number, or addresses such as 10.0.0.1:445,10.0.1.1:445", s)
		}
		o.Addrs = append(o.Addrs, addr)
	}
	if o.Count = 1 + len(o.Addrs); o.Count > maxChannels {
		return o, Usagef("%d channels: there can be 1 to %d", o.Count, maxChannels)
	}
	return o, nil
}

// ParseServerAddress reads HOST or HOST:PORT and gives it a port.
func ParseServerAddress(s string) (string, error) {
	s = strings.TrimSpace(s)
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), client.DefaultPort
	}
	n, perr := strconv.ParseUint(port, 10, 16)
	if host == "" || n == 0 || perr != nil || strings.ContainsAny(host, "/\\@, ") {
		return "", Usagef("%q is not the address of a server; give HOST:PORT", s)
	}
	return net.JoinHostPort(host, port), nil
}

// ParseOnLoss reads hold, fail-after=TIME or fail.
func ParseOnLoss(s string) (link.Policy, error) {
	p, err := link.ParsePolicy(s)
	if err != nil {
		return p, Usagef("%v", err)
	}
	return p, nil
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
