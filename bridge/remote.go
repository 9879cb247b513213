package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"vdbridge/client"
	"vdbridge/client/link"
	"vdbridge/rsvd"
	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/pcap"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// Remote is a connection to a server with a session and a share: what a URL needs before a file is opened.
type Remote struct {
	loc     Location
	link    *link.Link
	onLoss  link.Policy
	last    *previousSession
	who     *Initiator // released when the session has ended; may be nil
	addrs   []string
	capture *pcap.Writer

	close sync.Once
	err   error
}

// Connect connects, logs on and connects to the share. Errors are *Error with a sentence for the user.
func Connect(ctx context.Context, loc Location, o Options) (_ *Remote, err error) {
	if loc.Local {
		return nil, Usagef("%s is a local path; give a URL such as smb://user@host/share/…", loc)
	}
	if loc.Share == "" {
		return nil, Usagef("%s names no share; give smb://user@host/share/…", loc)
	}
	r := &Remote{loc: loc, onLoss: o.OnLoss, last: o.last, addrs: append([]string{loc.Addr()}, o.ServerAddresses...)}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	cfg := client.Config{
		MinDialect: o.MinDialect, MaxDialect: o.MaxDialect, Seal: o.Encrypt, Logger: o.logger(), ServerName: loc.Host,
		Transport: transport.Options{},
	}
	if o.OnLoss.Holds() {
		cfg.Logger = slog.New(quieter{o.logger().Handler()}) // the link tells of losses, once
		cfg.ServerTimeout, cfg.IdleEcho = cmp.Or(o.ServerTimeout, defaultServerTimeout), cmp.Or(o.ServerTimeout, defaultServerTimeout)/2
	}
	if o.Pcap != "" {
		if r.capture, err = pcap.Create(o.Pcap); err != nil {
			return nil, fmt.Errorf("capture file: %w", err)
		}
		cfg.Tap = func(local, remote net.Addr) transport.Tap { return r.capture.Connection(local, remote, false) }
		cfg.SessionKey = r.capture.SessionKey
	}
	smb := &link.SMB{Client: cfg, Share: loc.Share, Logon: (&logon{loc: loc, o: o}).run, Channels: o.Channels}
	first := true
	dial := func(ctx context.Context, addr string, previous uint64) (link.Way, error) {
		if first {
			first = false
			return smb.DialIn(ctx, addr, previous, o.Timeout)
		}
		return smb.Dial(ctx, addr, previous)
	}
	r.link, err = link.New(link.Config{Addresses: r.addrs, Dial: dial, Policy: o.OnLoss, AttemptTimeout: o.Timeout, Pulse: cmp.Or(o.pulse, defaultPulse), Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	if err := r.link.Connect(ctx); err != nil {
		return nil, explainConnect(loc, o, err)
	}
	return r, nil
}

// defaultServerTimeout is how long a server that is to be held on to may be silent before it is taken for lost.
const defaultServerTimeout = 20 * time.Second

// defaultPulse is how often the server is asked for a sign of life, and how we stand with a shared disk: so long it can take until a registration that another
// process has made for us is known here.
const defaultPulse = 3 * time.Second

// parts is what the connection consists of now.
func (r *Remote) parts() (*client.Conn, *client.Session, *client.Tree) {
	return link.Parts(r.link.Way())
}

// tree is the share.
func (r *Remote) tree() *client.Tree {
	_, _, t := r.parts()
	return t
}

// explainConnect makes the sentence for a first connection that failed. What comes from logging on has one already.
func explainConnect(loc Location, o Options, err error) error {
	var step *link.StepError
	if !errors.As(err, &step) {
		return explain("connect", loc, o, err)
	}
	if step.Step == "logon" {
		return step.Err
	}
	return explain(step.Step, loc, o, step.Err)
}

// quieter is a log in which warnings are mere information.
type quieter struct{ slog.Handler }

func (q quieter) Enabled(ctx context.Context, l slog.Level) bool {
	return q.Handler.Enabled(ctx, lower(l))
}

func (q quieter) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lower(r.Level)
	return q.Handler.Handle(ctx, r)
}

func (q quieter) WithAttrs(a []slog.Attr) slog.Handler { return quieter{q.Handler.WithAttrs(a)} }

func (q quieter) WithGroup(name string) slog.Handler { return quieter{q.Handler.WithGroup(name)} }

func lower(l slog.Level) slog.Level {
	if l >= slog.LevelWarn {
		return slog.LevelInfo
	}
	return l
}

// Close disconnects the share, logs off, ends the connection and completes the capture. It may be called more than once.
func (r *Remote) Close() error {
	r.close.Do(func() {
		if r.link != nil {
			if err := r.link.Close(); err != nil {
				r.err = fmt.Errorf("end the connection to %s: %w", r.loc.Host, err)
			} else if r.last != nil {
				r.last.forget()
			}
		}
		r.who.Release()
		if r.capture != nil {
			if err := r.capture.Close(); err != nil {
				r.err = errors.Join(r.err, fmt.Errorf("capture file: %w", err))
			}
		}
	})
	return r.err
}

// ConnectionInfo says what was negotiated.
type ConnectionInfo struct {
	Server  string `json:"server"`
	Dialect string `json:"dialect"`
	Signing string `json:"signing"`
	Cipher  string `json:"cipher,omitempty"` // only if messages are encrypted
	User    string `json:"user"`
}

// Summary is one line for people.
func (i *ConnectionInfo) Summary() string {
	prot := "signed with " + i.Signing
	if i.Cipher != "" {
		prot = "encrypted with " + i.Cipher
	}
	return fmt.Sprintf("SMB %s to %s as %s, %s", i.Dialect, i.Server, i.User, prot)
}

// Info says what was negotiated.
func (r *Remote) Info() *ConnectionInfo {
	conn, session, tree := r.parts()
	n := conn.Info()
	i := &ConnectionInfo{Server: r.loc.Addr(), Dialect: n.Dialect.String(), Signing: n.Signing.String(), User: session.Identity().String()}
	if tree.Sealed() {
		i.Cipher = n.Cipher.String()
	}
	return i
}

// explain makes the sentence for an error before the file is opened.
func explain(step string, loc Location, o Options, err error) error {
	class := Classify(err)
	s := ""
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled):
		return &Error{ClassInterrupted, "interrupted", err}
	case errors.Is(err, client.ErrUnsupportedServer):
		class = ClassUnsupported
		why := strings.ReplaceAll(reason(err, client.ErrUnsupportedServer), "MinDialect", "--min-dialect")
		s = fmt.Sprintf("the server %s cannot be used: %s", loc.Host, why)
	case errors.Is(err, client.ErrSecurity):
		class = ClassConnection
		s = fmt.Sprintf("a message of %s is not authentic, so somebody may have changed it on the way: %v", loc.Host, err)
	case errors.As(err, &dns):
		class = ClassConnection
		s = fmt.Sprintf("the host %s is not known: check the name in the URL", loc.Host)
	case step == "connect" && errors.Is(err, context.DeadlineExceeded):
		class = ClassConnection
		s = fmt.Sprintf("%s does not answer within %v: check host, port and firewall, or give it more --timeout", loc.Addr(), o.Timeout)
	case step == "connect" && errors.Is(err, ntstatus.NotSupported):
		class = ClassUnsupported
		s = fmt.Sprintf("the server %s speaks none of the SMB dialects that were offered; allow others with --min-dialect and --max-dialect", loc.Host)
	case step == "connect":
		class = ClassConnection
		s = fmt.Sprintf("cannot connect to %s: %v; check host and port, and that the server runs", loc.Addr(), rootCause(err))
	case step == "share" && class == ClassNotFound:
		s = fmt.Sprintf("there is no share %q on %s", loc.Share, loc.Host)
	case step == "share" && class == ClassPermission:
		s = fmt.Sprintf("this user may not use the share %q on %s, or the share wants encryption (try --encrypt)", loc.Share, loc.Host)
	default:
		s = fmt.Sprintf("%s: %v", loc, err)
	}
	return &Error{class, s, err}
}

// reason is the text of err behind that of the sentinel it wraps.
func reason(err, sentinel error) string {
	_, after, ok := strings.Cut(err.Error(), sentinel.Error()+": ")
	if !ok {
		return err.Error()
	}
	return after
}

func explainLogon(loc Location, o Options, cred Credentials, err error) error {
	switch class := Classify(err); {
	case errors.Is(err, client.ErrGuest):
		return &Error{ClassAuth, fmt.Sprintf("%s would let %s in only as a guest, without signing: check user name and password, or say --guest if that is what you want", loc.Host, cred), err}
	case class == ClassAuth:
		var ce *client.Error
		hint := "check user name, domain and password"
		if errors.As(err, &ce) && ce.Hint != "" {
			hint = ce.Hint
		}
		return &Error{ClassAuth, fmt.Sprintf("%s does not let %s log on: %s", loc.Host, cred, hint), err}
	case class == ClassPermission, errors.Is(err, auth.ErrRefused):
		return &Error{ClassAuth, fmt.Sprintf("%s does not let %s log on: %v", loc.Host, cred, err), err}
	}
	return explain("logon", loc, o, err)
}

// explainOpen makes the sentence for an error of opening the file.
func explainOpen(loc Location, err error) error {
	class := Classify(err)
	s := ""
	where := "on this machine"
	if !loc.Local {
		where = fmt.Sprintf("in the share %q on %s", loc.Share, loc.Host)
	}
	switch class {
	case ClassNotFound:
		s = fmt.Sprintf("there is no file %q %s", strings.ReplaceAll(loc.Path, `\`, "/"), where)
	case ClassPermission:
		s = fmt.Sprintf("you may not open %s: ask for the rights, or try --read-only", loc)
	case ClassBusy:
		if loc.Local {
			s = fmt.Sprintf("%s is in use by another program: end that first", loc)
			break
		}
		s = fmt.Sprintf("%s is in use by somebody else, and cannot be opened for this host alone: end that use first, or open it as a shared disk (--mode rsvd)", loc)
	case ClassInterrupted:
		s = "interrupted"
	default:
		s = fmt.Sprintf("%s: %v", loc, err)
	}
	return &Error{class, s, err}
}

// smbFile is an open for package rsvd.
type smbFile struct {
	*link.File
	maxTransact int
}

// kinds says to the link what rsvd says of a control.
var kinds = [...]link.Kind{rsvd.KindOnce: link.Once, rsvd.KindOnceWrite: link.OnceWrite, rsvd.KindRead: link.Read, rsvd.KindWrite: link.Write,
	rsvd.KindDurable: link.Durable, rsvd.KindSync: link.Sync}

// Control sends a control of a kind.
func (f *smbFile) Control(ctx context.Context, k rsvd.Kind, code uint32, in1, in2, out1, out2 []byte) (int, error) {
	return f.File.Control(ctx, kinds[k], code, in1, in2, out1, out2)
}

// hasContext says whether a CREATE has a context.
func hasContext(req *wire.CreateRequest, name string) bool {
	return slices.ContainsFunc(req.Contexts, func(c wire.CreateContext) bool { return c.Name == name })
}

// MaxTransactSize is the most bytes of an IOCTL.
func (f *smbFile) MaxTransactSize() int { return f.maxTransact }

// options turns a CREATE into what client takes.
func openOptions(req *wire.CreateRequest) client.OpenOptions {
	return client.OpenOptions{
		Access: req.DesiredAccess, Share: req.ShareAccess, Disposition: req.Disposition, Options: req.Options, Attributes: req.FileAttributes,
		Oplock: req.OplockLevel, Contexts: req.Contexts,
	}
}
