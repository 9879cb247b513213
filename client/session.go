package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// SessionOptions say what kind of session is acceptable. The zero value refuses guest sessions.
type SessionOptions struct {
	// AllowGuest accepts that the server does not know the user and grants guest access. Such a session has neither signing nor encryption: anyone
	// on the network can read and change its data.
	AllowGuest bool
	// Previous is the id of a session of a connection that was lost, which the server then ends at once, 0 for none.
	Previous uint64
	// Renew, if not nil, returns fresh mechanisms for the same user, for when the session has expired or is about to, and for further channels. It
	// may be called by several goroutines at a time.
	Renew func(ctx context.Context) ([]auth.MechInitiator, error)
}

// Session is an authenticated user on one or more connections.
type Session struct {
	c         *Conn // on which it began; it may be lost
	id        uint64
	identity  auth.Identity
	signer    *crypt.Signer // nil for guest and anonymous sessions; other channels have their own
	sealer    *crypt.Sealer // of all channels; nil where there is no encryption
	seal      bool          // everything
	unsigned  bool
	sequenced bool // requests bear a channel sequence
	app       []byte
	renew     func(context.Context) ([]auth.MechInitiator, error)
	closed    atomic.Bool

	channels atomic.Pointer[channels] // changed under mu
	turn     atomic.Uint32
	sequence atomic.Uint32 // channel sequence, of which 16 bits count; changed under mu

	renewing atomic.Pointer[renewal] // while requests are held back
	renewals atomic.Uint32
	expiry   atomic.Int64  // Unix nanoseconds; 0: none
	proved   chan struct{} // capacity 1: the user was authenticated again
	proving  chan struct{} // capacity 1: held while the user is authenticated again

	lostChannels, replayed, forged atomic.Uint64

	changed chan struct{}   // capacity 1: a channel was lost, or the options have changed
	done    chan struct{}   // closed when err is set
	ctx     context.Context // of what the session does on its own account
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu      sync.Mutex
	err     error // why the session ended
	trees   map[*Tree]bool
	bound   []*Conn // to be closed with the session
	files   map[wire.FileID]*File
	early   []notice // break notifications for opens that are not known, perhaps not yet
	keep    *ChannelOptions
	keeping bool
}

// Session logs a user on by NTLM. See SessionWith.
func (c *Conn) Session(ctx context.Context, user auth.Credentials, opts SessionOptions) (*Session, error) {
	if opts.Renew == nil {
		opts.Renew = func(context.Context) ([]auth.MechInitiator, error) {
			return []auth.MechInitiator{auth.NTLM(user, "cifs/"+c.server)}, nil
		}
	}
	return c.SessionWith(ctx, opts, auth.NTLM(user, "cifs/"+c.server))
}

// SessionWith authenticates by one of the mechanisms, in order of preference, which are used up by it. A session that turns out as guest is refused
// unless opts allow it, an anonymous one unless the mechanism asks for it. [MS-SMB2] 3.2.4.2.3, 3.2.5.3
func (c *Conn) SessionWith(ctx context.Context, opts SessionOptions, mechs ...auth.MechInitiator) (*Session, error) {
	s := &Session{
		c: c, renew: opts.Renew, trees: map[*Tree]bool{}, files: map[wire.FileID]*File{},
		proving: make(chan struct{}, 1), proved: make(chan struct{}, 1), changed: make(chan struct{}, 1), done: make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.sequenced = c.neg.dialect >= wire.Dialect300 && c.neg.serverCaps&(wire.CapMultiChannel|wire.CapPersistentHandles) != 0
	a, err := auth.NewInitiator(c.neg.token, mechs...)
	if err == nil {
		err = s.authenticate(ctx, &channel{s: s, c: c, gone: make(chan struct{})}, logonNew, a, opts)
	}
	if err != nil {
		s.cancel()
		return nil, wrap("log on to "+c.server, "", err)
	}
	s.noteExpiry(a)
	if s.renew != nil {
		s.wg.Go(s.renewLoop)
	}
	c.log.Info("logged on", "server", c.addr, "user", s.identity, "sealed", s.seal, "signed", !s.unsigned)
	return s, nil
}

// maxLegs bounds the messages of one authentication.
const maxLegs = 16

// logonKind says what an authentication is for.
type logonKind uint8

const (
	logonNew   logonKind = iota // a new session
	logonBind                   // a further channel of one
	logonAgain                  // a session that expires
)

// authenticate exchanges the messages of one authentication on the channel, which is taken into use if it is a new one. [MS-SMB2] 3.2.4.2.3, 3.2.5.3
func (s *Session) authenticate(ctx context.Context, ch *channel, kind logonKind, a auth.Initiator, opts SessionOptions) error {
	c := ch.c
	mode := uint8(wire.NegotiateSigningRequired)
	if c.cfg.Unsigned {
		mode = uint8(wire.NegotiateSigningEnabled)
	}
	q := wire.SessionSetupRequest{SecurityMode: mode, PreviousSessionID: opts.Previous}
	if kind == logonBind {
		q.Flags = wire.SessionFlagBinding
	}
	preauth := c.neg.preauth
	token, done, err := a.Token(nil)
	for leg := 0; ; leg++ {
		switch {
		case err != nil:
			return err
		case leg == maxLegs:
			return fmt.Errorf("%w: authentication does not end", ErrProtocol)
		case leg > 0 && done && len(token) == 0:
			return fmt.Errorf("%w: server goes on with a finished authentication", ErrProtocol)
		}
		q.SecurityBuffer = token
		r := c.request(wire.CmdSessionSetup, ch, 0)
		r.unhindered = true
		switch kind {
		case logonBind: // never sealed
			r.sign = !s.unsigned
		case logonAgain:
			s.protect(r, false)
		}
		r.out = q.Append(r.out)
		if err := r.acquire(ctx, 1, false); err != nil {
			r.unref()
			return err
		}
		r.send()
		preauth.Update(r.out)
		signed := r.sign
		r.sign = false // which key is the reply's depends on what it says
		ok, err2 := r.wait(ctx)
		if !ok {
			return err2
		}
		if err2 != nil {
			r.unref()
			return err2
		}
		switch st := ntstatus.Status(r.h.Status); st {
		case ntstatus.MoreProcessingRequired:
			if signed {
				if err := ch.verifyLogon(r, ch.signer); err != nil {
					r.unref()
					return err
				}
			}
			var v wire.SessionSetupResponse
			v, err = wire.ParseSessionSetupResponse(r.msg)
			if err != nil {
				r.unref()
				return protocolError(err)
			}
			if kind == logonNew {
				s.id = r.h.SessionID
			}
			preauth.Update(r.msg)
			token, done, err = a.Token(slices.Clone(v.SecurityBuffer))
			r.unref()
		case ntstatus.Success:
			switch kind {
			case logonNew:
				s.id = r.h.SessionID
				err = s.established(ch, r, a, done, &preauth, opts)
			case logonBind:
				err = s.boundTo(ch, r, a, done, &preauth)
			case logonAgain:
				if signed {
					err = ch.verifyLogon(r, ch.signer)
				}
				if err == nil {
					_, err = lastToken(r, a, done)
				}
			}
			r.unref()
			return err
		default:
			r.unref()
			return &Error{Op: "authenticate", Path: a.Identity().String(), Status: st, Hint: logonHint(st)}
		}
	}
}

// verifyLogon checks the signature of a reply to SESSION_SETUP. A wrong one ends the connection.
func (ch *channel) verifyLogon(r *request, signer *crypt.Signer) error {
	if r.opened {
		return nil
	}
	err := fmt.Errorf("%w: server did not sign its part of the authentication", ErrSecurity)
	if r.h.Flags&wire.FlagSigned != 0 {
		if err = signer.Verify(r.msg); err == nil {
			return nil
		}
		err = fmt.Errorf("%w: last message of the authentication: %w", ErrSecurity, err)
	}
	ch.c.fail(err)
	return err
}

// lastToken gives the server's last token to the mechanism, which must be done then.
func lastToken(r *request, a auth.Initiator, done bool) (wire.SessionSetupResponse, error) {
	v, err := wire.ParseSessionSetupResponse(r.msg)
	if err != nil {
		return v, protocolError(err)
	}
	if done {
		return v, nil
	}
	if _, done, err = a.Token(slices.Clone(v.SecurityBuffer)); err == nil && !done {
		err = fmt.Errorf("%w: server ended the authentication early", ErrProtocol)
	}
	return v, err
}

// established takes over the keys once the server has accepted a new session, and checks the signature of its last reply.
func (s *Session) established(ch *channel, r *request, a auth.Initiator, done bool, preauth *crypt.Preauth, opts SessionOptions) error {
	c, n := s.c, &s.c.neg
	v, err := wire.ParseSessionSetupResponse(r.msg)
	if err != nil {
		return protocolError(err)
	}
	who := a.Identity()
	guest, null := v.SessionFlags&wire.SessionFlagIsGuest != 0, v.SessionFlags&wire.SessionFlagIsNull != 0
	switch {
	case guest && !opts.AllowGuest:
		return fmt.Errorf("%w to %s; check the user name, or allow guests by name if that is wanted", ErrGuest, who)
	case null && !who.Anonymous:
		return fmt.Errorf("%w: server made the session of %s an anonymous one", ErrGuest, who)
	}
	if !done && !guest {
		if _, err := lastToken(r, a, done); err != nil {
			return err
		}
	}
	s.identity = a.Identity()
	s.identity.Guest = guest
	s.unsigned = c.cfg.Unsigned
	if guest || null || who.Anonymous {
		if c.cfg.Seal {
			return fmt.Errorf("%w: guest and anonymous sessions cannot be encrypted", ErrSecurity)
		}
		s.unsigned = true
		return s.add(ch)
	}
	full := a.SessionKey()
	keys := crypt.DeriveKeys(n.dialect, n.cipher, full, preauth)
	s.app = keys.Application
	if s.signer, err = crypt.NewSigner(n.signing, keys.Signing); err != nil {
		return err
	}
	ch.signer = s.signer
	if n.dialect == wire.Dialect311 || !s.unsigned || r.h.Flags&wire.FlagSigned != 0 {
		if err := ch.verifyLogon(r, s.signer); err != nil {
			return err
		}
	}
	if n.cipher != wire.CipherNone {
		s.sealer, err = crypt.NewSealer(crypt.SealerConfig{
			Cipher: n.cipher, SendKey: keys.ClientToServer, ReceiveKey: keys.ServerToClient, SessionID: s.id,
		})
		if err != nil {
			return err
		}
	}
	s.seal = c.cfg.Seal
	if v.SessionFlags&wire.SessionFlagEncryptData != 0 {
		s.seal = true
	}
	if s.seal && s.sealer == nil {
		return fmt.Errorf("%w: server asks for encryption, and none was agreed on; allow more ciphers", ErrUnsupportedServer)
	}
	if c.cfg.SessionKey != nil {
		c.cfg.SessionKey(s.id, full)
	}
	return s.add(ch)
}

// logonHint says what can be done about a refused logon.
func logonHint(s ntstatus.Status) string {
	switch s {
	case ntstatus.LogonFailure, ntstatus.WrongPassword, ntstatus.NoSuchUser:
		return "check user name, domain and password"
	case ntstatus.AccountLockedOut:
		return "the account is locked; wait, or ask the administrator"
	case ntstatus.AccountDisabled, ntstatus.AccountExpired, ntstatus.AccountRestriction:
		return "the account may not be used; ask the administrator"
	case ntstatus.PasswordExpired, ntstatus.PasswordMustChange:
		return "change the password first"
	case ntstatus.TimeDifferenceAtDC:
		return "set the clock"
	case ntstatus.AccessDenied:
		return "the server does not admit this user, or does not accept how the client protects the session"
	}
	return ""
}

// ID returns the session's identifier at the server.
func (s *Session) ID() uint64 { return s.id }

// Identity returns who is logged on.
func (s *Session) Identity() auth.Identity { return s.identity }

// Sealed says whether everything in the session is encrypted.
func (s *Session) Sealed() bool { return s.seal }

// ApplicationKey returns the key for higher layers; nil for guest and anonymous sessions. [MS-SMB2] 3.2.4.25
func (s *Session) ApplicationKey() []byte { return slices.Clone(s.app) }

// Conn returns the connection on which the session began.
func (s *Session) Conn() *Conn { return s.c }

// protect decides how r is protected. seal is set when the tree asks for encryption.
func (s *Session) protect(r *request, seal bool) {
	r.seal = s.seal || seal
	r.sign = !r.seal && !s.unsigned
}

// Close disconnects the session's trees, logs off, and closes the connections that were bound to the session.
func (s *Session) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return s.logoff(ctx)
}

// logoff disconnects the trees, so that their files are closed first, and ends the session. [MS-SMB2] 3.2.4.23
func (s *Session) logoff(ctx context.Context) error {
	s.mu.Lock()
	trees := make([]*Tree, 0, len(s.trees))
	for t := range s.trees {
		trees = append(trees, t)
	}
	ended := s.err != nil
	s.mu.Unlock()
	var errs []error
	for _, t := range trees {
		errs = append(errs, t.disconnect(ctx))
	}
	if s.closed.Swap(true) {
		s.wg.Wait()
		return errors.Join(errs...)
	}
	if !ended {
		errs = append(errs, s.simple(ctx, wire.CmdLogoff, 0, false, "log off", s.c.server))
	}
	s.end(ErrClosed)
	s.wg.Wait()
	for _, c := range s.release() {
		_ = c.Close() // what has become of the session is known already
	}
	return errors.Join(errs...)
}

// simple sends a request without parameters.
func (s *Session) simple(ctx context.Context, cmd wire.Command, tree uint32, seal bool, op, path string) error {
	a := attempt{s: s, repeat: always}
	for {
		r := s.request(cmd, tree, seal, &a)
		r.out = wire.AppendEmptyRequest(r.out)
		err := a.exchange(ctx, r, 1)
		if err == nil {
			err = a.simple(r, wire.ParseEmptyResponse)
		}
		if err == nil {
			return nil
		}
		before := a.flags
		if err = a.again(ctx, err); err != nil {
			if before&wire.FlagReplayOperation != 0 && (isStatus(err, ntstatus.UserSessionDeleted) || isStatus(err, ntstatus.NetworkNameDeleted)) {
				return nil // the first one did it
			}
			return opError(op, path, err)
		}
	}
}
