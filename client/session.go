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

// channel is a session's way over one connection. There is one now; multichannel will bring more, each with its own signing key and all with
// the session's sealer.
type channel struct {
	signer *crypt.Signer // nil for guest and anonymous sessions
	sealer *crypt.Sealer // nil where there is no encryption
}

// Session is an authenticated user on a connection.
type Session struct {
	c        *Conn
	id       uint64
	ch       channel
	identity auth.Identity
	seal     bool // everything
	unsigned bool
	app      []byte
	closed   atomic.Bool

	mu    sync.Mutex
	trees map[*Tree]bool
}

// Session logs a user on by NTLM. See SessionWith.
func (c *Conn) Session(ctx context.Context, user auth.Credentials, opts SessionOptions) (*Session, error) {
	return c.SessionWith(ctx, opts, auth.NTLM(user, "cifs/"+c.server))
}

// SessionWith authenticates by one of the mechanisms, in order of preference, which are used up by it. A session that turns out as guest is refused
// unless opts allow it, an anonymous one unless the mechanism asks for it. [MS-SMB2] 3.2.4.2.3, 3.2.5.3
func (c *Conn) SessionWith(ctx context.Context, opts SessionOptions, mechs ...auth.MechInitiator) (*Session, error) {
	if opts.Renew != nil {
		return nil, wrap("log on to "+c.server, "", errors.ErrUnsupported)
	}
	s := &Session{c: c, trees: map[*Tree]bool{}}
	a, err := auth.NewInitiator(c.neg.token, mechs...)
	if err == nil {
		err = s.setup(ctx, a, opts)
	}
	if err != nil {
		return nil, wrap("log on to "+c.server, "", err)
	}
	c.log.Info("logged on", "server", c.addr, "user", s.identity, "sealed", s.seal, "signed", !s.unsigned)
	return s, nil
}

// maxLegs bounds the messages of one authentication.
const maxLegs = 16

func (s *Session) setup(ctx context.Context, a auth.Initiator, opts SessionOptions) error {
	c := s.c
	mode := uint8(wire.NegotiateSigningRequired)
	if c.cfg.Unsigned {
		mode = uint8(wire.NegotiateSigningEnabled)
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
		q := wire.SessionSetupRequest{SecurityMode: mode, PreviousSessionID: opts.Previous, SecurityBuffer: token}
		r := c.request(wire.CmdSessionSetup, s, 0)
		r.out = q.Append(r.out)
		if err := r.acquire(ctx, 1, false); err != nil {
			r.unref()
			return err
		}
		r.send()
		preauth.Update(r.out)
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
			var v wire.SessionSetupResponse
			v, err = wire.ParseSessionSetupResponse(r.msg)
			if err != nil {
				r.unref()
				return protocolError(err)
			}
			s.id = r.h.SessionID
			preauth.Update(r.msg)
			token, done, err = a.Token(slices.Clone(v.SecurityBuffer))
			r.unref()
		case ntstatus.Success:
			s.id = r.h.SessionID
			err = s.finish(r, a, done, &preauth, opts)
			r.unref()
			return err
		default:
			r.unref()
			return &Error{Op: "authenticate", Path: a.Identity().String(), Status: st, Hint: logonHint(st)}
		}
	}
}

// finish takes over the keys once the server has accepted, and checks the signature of its last reply.
func (s *Session) finish(r *request, a auth.Initiator, done bool, preauth *crypt.Preauth, opts SessionOptions) error {
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
		if _, done, err = a.Token(slices.Clone(v.SecurityBuffer)); err != nil {
			return err
		} else if !done {
			return fmt.Errorf("%w: server ended the authentication early", ErrProtocol)
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
		c.register(s)
		return nil
	}
	full := a.SessionKey()
	keys := crypt.DeriveKeys(n.dialect, n.cipher, full, preauth)
	s.app = keys.Application
	signer, err := crypt.NewSigner(n.signing, keys.Signing)
	if err != nil {
		return err
	}
	switch {
	case r.h.Flags&wire.FlagSigned != 0:
		if err := signer.Verify(r.msg); err != nil {
			err = fmt.Errorf("%w: last message of the authentication: %w", ErrSecurity, err)
			c.fail(err)
			return err
		}
	case n.dialect == wire.Dialect311 || !s.unsigned:
		err := fmt.Errorf("%w: server did not sign the end of the authentication", ErrSecurity)
		c.fail(err)
		return err
	}
	if n.cipher != wire.CipherNone {
		s.ch.sealer, err = crypt.NewSealer(crypt.SealerConfig{
			Cipher: n.cipher, SendKey: keys.ClientToServer, ReceiveKey: keys.ServerToClient, SessionID: s.id,
		})
		if err != nil {
			return err
		}
	}
	s.ch.signer = signer
	s.seal = c.cfg.Seal
	if v.SessionFlags&wire.SessionFlagEncryptData != 0 {
		s.seal = true
	}
	if s.seal && s.ch.sealer == nil {
		return fmt.Errorf("%w: server asks for encryption, and none was agreed on; allow more ciphers", ErrUnsupportedServer)
	}
	if c.cfg.SessionKey != nil {
		c.cfg.SessionKey(s.id, full)
	}
	c.register(s)
	return nil
}

func (c *Conn) register(s *Session) {
	c.mu.Lock()
	c.sessions[s.id] = s
	c.mu.Unlock()
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

// Conn returns the connection.
func (s *Session) Conn() *Conn { return s.c }

// protect decides how r is protected. seal is set when the tree asks for encryption.
func (s *Session) protect(r *request, seal bool) {
	r.seal = s.seal || seal
	r.sign = !r.seal && !s.unsigned
}

// Close disconnects the session's trees and logs off.
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
	s.mu.Unlock()
	var errs []error
	for _, t := range trees {
		errs = append(errs, t.disconnect(ctx))
	}
	if s.closed.Swap(true) {
		return errors.Join(errs...)
	}
	errs = append(errs, s.simple(ctx, wire.CmdLogoff, 0, false, "log off", s.c.server))
	s.c.mu.Lock()
	delete(s.c.sessions, s.id)
	s.c.last = nil
	s.c.mu.Unlock()
	return errors.Join(errs...)
}

// simple sends a request without parameters.
func (s *Session) simple(ctx context.Context, cmd wire.Command, tree uint32, seal bool, op, path string) error {
	r := s.c.request(cmd, s, tree)
	s.protect(r, seal)
	r.out = wire.AppendEmptyRequest(r.out)
	ok, err := r.roundTrip(ctx, 1)
	if !ok {
		return wrap(op, path, err)
	}
	defer r.unref()
	if err != nil {
		return wrap(op, path, err)
	}
	return r.expect(op, path, wire.ParseEmptyResponse)
}
