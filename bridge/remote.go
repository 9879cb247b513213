package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"vdbridge/client"
	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/pcap"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// Remote is a connection to a server with a session and a share: what a URL needs before a file is opened.
type Remote struct {
	loc     Location
	conn    *client.Conn
	session *client.Session
	tree    *client.Tree
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
	r := &Remote{loc: loc}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	cfg := client.Config{
		MinDialect: o.MinDialect, MaxDialect: o.MaxDialect, Seal: o.Encrypt, Logger: o.logger(), ServerName: loc.Host,
		Transport: transport.Options{},
	}
	if o.Pcap != "" {
		if r.capture, err = pcap.Create(o.Pcap); err != nil {
			return nil, fmt.Errorf("capture file: %w", err)
		}
		cfg.Tap = func(local, remote net.Addr) transport.Tap { return r.capture.Connection(local, remote, false) }
		cfg.SessionKey = r.capture.SessionKey
	}
	dial := ctx
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		dial, cancel = context.WithTimeout(ctx, o.Timeout)
		defer cancel()
	}
	if r.conn, err = client.Dial(dial, loc.Addr(), cfg); err != nil {
		return nil, explain("connect", loc, o, err)
	}
	if o.Kerberos.On {
		if r.session, err = kerberosLogon(ctx, r.conn, loc, o); err != nil {
			return nil, err
		}
		return r.connectShare(ctx, o)
	}
	// Asked for only now: nobody types a password for a server that is not there. The prompt has no time limit.
	cred, err := o.Credentials.Resolve(ctx, loc)
	if err != nil {
		return nil, err
	}
	setUp, cancel := o.limit(ctx)
	defer cancel()
	user := auth.Credentials{User: cred.User, Domain: cred.Domain, Password: cred.password, Anonymous: cred.Anonymous}
	if r.session, err = r.conn.Session(setUp, user, client.SessionOptions{AllowGuest: cred.Guest}); err != nil {
		return nil, explainLogon(loc, o, cred, err)
	}
	return r.connectShare(setUp, o)
}

// connectShare connects to the share, the last step of Connect.
func (r *Remote) connectShare(ctx context.Context, o Options) (*Remote, error) {
	ctx, cancel := o.limit(ctx)
	defer cancel()
	var err error
	if r.tree, err = r.session.Tree(ctx, r.loc.Share); err != nil {
		return nil, explain("share", r.loc, o, err)
	}
	return r, nil
}

// Close disconnects the share, logs off, ends the connection and completes the capture. It may be called more than once.
func (r *Remote) Close() error {
	r.close.Do(func() {
		var errs []error
		if r.tree != nil {
			errs = append(errs, r.tree.Close())
		}
		if r.session != nil {
			errs = append(errs, r.session.Close())
		}
		if r.conn != nil {
			if err := r.conn.Close(); err != nil && !errors.Is(err, client.ErrClosed) {
				errs = append(errs, err)
			}
		}
		if err := errors.Join(errs...); err != nil {
			r.err = fmt.Errorf("end the connection to %s: %w", r.loc.Host, err)
		}
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
	n := r.conn.Info()
	i := &ConnectionInfo{Server: r.loc.Addr(), Dialect: n.Dialect.String(), Signing: n.Signing.String(), User: r.session.Identity().String()}
	if r.tree.Sealed() {
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
	*client.File
	maxTransact int
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
