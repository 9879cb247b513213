package server

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// States of a session. [MS-SMB2] 3.3.1.8
const (
	sessionInProgress int32 = iota
	sessionValid
	sessionExpired
	sessionGone
)

// session is an authenticated user on a connection.
type session struct {
	id    uint64
	c     *conn
	state atomic.Int32

	// Of the reading goroutine, which runs all SESSION_SETUPs.
	acceptor auth.Acceptor
	preauth  crypt.Preauth
	setups   int

	// Set before state becomes sessionValid, then constant.
	user    string
	signer  *crypt.Signer
	sealer  *crypt.Sealer
	encrypt bool // all requests must be encrypted

	proved atomic.Int64 // when the user was authenticated, Unix nanoseconds

	mu       sync.RWMutex
	trees    map[uint32]*tree
	opens    map[uint64]*open
	nextTree uint32
}

// established says whether the session has keys.
func (sn *session) established() bool {
	st := sn.state.Load()
	return st == sessionValid || st == sessionExpired
}

// expire makes the session want authentication again: everything but LOGOFF, CLOSE and LOCK is refused with STATUS_NETWORK_SESSION_EXPIRED.
func (sn *session) expire() { sn.state.CompareAndSwap(sessionValid, sessionExpired) }

// maxSetups bounds the round trips of one authentication.
const maxSetups = 16

// maxRefused bounds the logons that may fail on one connection, maxInProgress the sessions of a connection on which nobody has logged on yet.
const (
	maxRefused    = 16
	maxInProgress = 2
)

// sessionSetup handles SESSION_SETUP on the reading goroutine. [MS-SMB2] 3.3.5.5
func (r *request) sessionSetup() (ntstatus.Status, error) {
	c := r.c
	if !r.last {
		return 0, fmt.Errorf("SESSION_SETUP in a compound: %w", errProtocol)
	}
	req, err := wire.ParseSessionSetupRequest(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter, nil
	}
	if req.Flags&wire.SessionFlagBinding != 0 {
		// Multichannel is not offered. [MS-SMB2] 3.3.5.5, step 4
		return ntstatus.RequestNotAccepted, nil
	}
	var sn *session
	if r.hdr.SessionID == 0 {
		if sn = c.newSession(); sn == nil {
			return ntstatus.InsufficientResources, nil
		}
	} else if sn = c.session(r.hdr.SessionID); sn == nil || sn.state.Load() == sessionGone {
		return ntstatus.UserSessionDeleted, nil
	}
	r.sess = sn
	reauth := sn.established()
	if reauth {
		if st := r.verify(); st != ntstatus.Success {
			return st, nil
		}
	}
	if sn.acceptor == nil {
		sn.acceptor, sn.setups = c.srv.newAcceptor(), 0
		sn.preauth = c.preauth
	}
	if c.dialect == wire.Dialect311 && !reauth {
		sn.preauth.Update(r.msg)
	}
	if sn.setups++; sn.setups > maxSetups {
		c.endSession(sn)
		return ntstatus.InsufficientResources, nil
	}
	token, done, err := sn.acceptor.Token(req.SecurityBuffer)
	if err != nil {
		st := ntstatus.LogonFailure
		if s, ok := ntstatus.Of(err); ok && s.IsError() {
			st = s
		}
		c.log.Info("logon refused", "why", err)
		sn.acceptor = nil
		c.endSession(sn)
		if c.refused++; c.refused > maxRefused {
			return 0, fmt.Errorf("%d logons were refused: %w", c.refused, errProtocol)
		}
		return st, nil
	}
	resp := wire.SessionSetupResponse{SecurityBuffer: token}
	r.w.ensure(64 + len(token))
	if !done {
		r.keepBody = true
		r.setBody(resp.Append(r.body()))
		if c.dialect == wire.Dialect311 && !reauth {
			r.w.hash = &sn.preauth
		}
		return ntstatus.MoreProcessingRequired, nil
	}
	user, key := sn.acceptor.Identity().String(), sn.acceptor.SessionKey()
	sn.acceptor = nil
	sn.proved.Store(time.Now().UnixNano())
	if reauth {
		if !strings.EqualFold(user, sn.user) {
			c.log.Warn("session reauthenticated as somebody else", "was", sn.user, "is", user)
			c.endSession(sn)
			return ntstatus.AccessDenied, nil
		}
		sn.state.Store(sessionValid)
	} else if st := sn.establish(user, key); st != ntstatus.Success {
		c.endSession(sn)
		return st, nil
	}
	if sn.encrypt {
		resp.SessionFlags |= wire.SessionFlagEncryptData
	}
	if req.PreviousSessionID != 0 && req.PreviousSessionID != sn.id {
		c.srv.dropPrevious(req.PreviousSessionID, sn.user)
	}
	r.mustSign = true
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success, nil
}

// establish makes the keys of a session whose user is known.
func (sn *session) establish(user string, key []byte) ntstatus.Status {
	c := sn.c
	keys := crypt.DeriveKeys(c.dialect, c.cipher, key, &sn.preauth)
	signer, err := crypt.NewSigner(c.signingAlg, keys.Signing)
	if err != nil {
		c.log.Error("session keys", "err", err)
		return ntstatus.InternalError
	}
	var sealer *crypt.Sealer
	if c.dialect >= wire.Dialect300 && c.cipher != wire.CipherNone {
		sealer, err = crypt.NewSealer(crypt.SealerConfig{Cipher: c.cipher, SendKey: keys.ServerToClient, ReceiveKey: keys.ClientToServer, SessionID: sn.id})
		if err != nil {
			c.log.Error("session keys", "err", err)
			return ntstatus.InternalError
		}
	}
	if c.srv.cfg.Encrypt {
		if sealer == nil {
			c.log.Info("logon refused: the server wants encryption and the client cannot", "user", user)
			return ntstatus.AccessDenied
		}
		sn.encrypt = true
	}
	sn.user, sn.signer, sn.sealer = user, signer, sealer
	if c.srv.cfg.KeyLog != nil {
		c.srv.cfg.KeyLog(sn.id, key)
	}
	c.authorised = true
	sn.state.Store(sessionValid)
	c.log.Info("logged on", "user", user, "dialect", c.dialect, "encrypt", sn.encrypt)
	return ntstatus.Success
}

// newAcceptor returns the server's side of one authentication.
func (s *Server) newAcceptor() auth.Acceptor {
	return auth.NewAcceptor(auth.AcceptNTLM(auth.AcceptorConfig{Users: s.cfg.Users, Name: s.name}))
}

// newSession adds a session that is not authenticated yet, or returns nil if there are too many.
func (c *conn) newSession() *session {
	s := c.srv
	sn := &session{c: c, trees: map[uint32]*tree{}, opens: map[uint64]*open{}}
	s.mu.Lock()
	full := len(s.sessions) >= s.lim.MaxSessions
	if !full {
		sn.id = s.newID()<<32 | uint64(s.guidTag())
		s.sessions[sn.id] = sn
	}
	s.mu.Unlock()
	if full {
		return nil
	}
	limit := maxSessionsPerConn
	if !c.authorised {
		limit = maxInProgress
	}
	c.mu.Lock()
	if full = len(c.sessions) >= limit; !full {
		c.sessions[sn.id] = sn
	}
	c.mu.Unlock()
	if full {
		s.dropSession(sn)
		return nil
	}
	return sn
}

// guidTag makes the session identifiers of two runs of the server differ.
func (s *Server) guidTag() uint32 { return uint32(s.started.UnixNano()>>20) | 1 }

// endSession removes a session from its connection and closes what it has open. The last one that ended is remembered, so that requests that come too
// late get a signed answer.
func (c *conn) endSession(sn *session) {
	c.mu.Lock()
	delete(c.sessions, sn.id)
	if sn.established() {
		c.ended = sn
	}
	c.lastSn.Store(nil)
	c.mu.Unlock()
	c.srv.dropSession(sn)
}

// dropSession closes what a session has open.
func (s *Server) dropSession(sn *session) {
	s.mu.Lock()
	delete(s.sessions, sn.id)
	s.mu.Unlock()
	if sn.state.Swap(sessionGone) == sessionGone {
		return
	}
	sn.closeOpens(nil)
	sn.c.cancelPendingOf(sn, nil, ntstatus.UserSessionDeleted)
	sn.mu.Lock()
	clear(sn.trees)
	sn.mu.Unlock()
}

// closeOpens closes all opens of a tree, or of all trees.
func (sn *session) closeOpens(t *tree) {
	sn.mu.Lock()
	var list []*open
	for id, o := range sn.opens {
		if t == nil || o.tree == t {
			list = append(list, o)
			delete(sn.opens, id)
		}
	}
	sn.mu.Unlock()
	// In the order in which they were opened, as far as it can be seen: who waits for a lock of an earlier open gets it.
	slices.SortFunc(list, func(a, b *open) int { return cmp.Compare(a.id.Persistent, b.id.Persistent) })
	for _, o := range list {
		if o.beginClose() {
			o.finishClose()
		}
	}
}

// dropPrevious ends the session that a client had before it lost its connection. [MS-SMB2] 3.3.5.5.3
func (s *Server) dropPrevious(id uint64, user string) {
	s.mu.Lock()
	old := s.sessions[id]
	s.mu.Unlock()
	if old == nil || !old.established() || old.user != user {
		return
	}
	old.c.endSession(old)
}

// logoff handles LOGOFF. [MS-SMB2] 3.3.5.6
func (r *request) logoff() ntstatus.Status {
	if wire.ParseEmptyRequest(r.msg) != nil {
		return ntstatus.InvalidParameter
	}
	r.c.endSession(r.sess)
	r.setBody(wire.AppendEmptyResponse(r.body()))
	return ntstatus.Success
}

// verify checks the signature of a request in the clear. [MS-SMB2] 3.3.5.2.4
func (r *request) verify() ntstatus.Status {
	if r.w.transform != nil {
		if r.w.transform != r.sess {
			return ntstatus.AccessDenied
		}
		return ntstatus.Success
	}
	if r.hdr.Flags&wire.FlagSigned == 0 {
		return ntstatus.AccessDenied
	}
	if err := r.sess.signer.Verify(r.msg); err != nil {
		if !errors.Is(err, crypt.ErrSignature) {
			return ntstatus.InternalError
		}
		r.c.log.Warn("request refused", "why", err)
		r.hdr.Flags &^= wire.FlagSigned
		return ntstatus.AccessDenied
	}
	return ntstatus.Success
}
