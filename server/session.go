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

// session is an authenticated user on one or more connections.
type session struct {
	id    uint64
	srv   *Server
	state atomic.Int32

	// Of the connection that began it; others must agree with it. Constant.
	dialect    wire.Dialect
	cipher     wire.Cipher
	signingAlg wire.SigningAlgorithm
	clientGUID wire.GUID

	// Set before state becomes sessionValid, then constant.
	user    string
	signer  *crypt.Signer // of the first channel; the requests that bind others are signed with it
	sealer  *crypt.Sealer // the same on all channels
	encrypt bool          // all requests must be encrypted

	ends atomic.Int64 // when the user must be authenticated again, Unix nanoseconds; 0 for never. (Session.ExpirationTime)

	mu       sync.RWMutex
	channels []*channel
	trees    map[uint32]*tree
	opens    map[uint64]*open
	nextTree uint32

	creates  int           // CREATEs that are being worked on; under mu
	lastDone chan struct{} // closed with the last of them, if the session has ended; under mu

	gone    chan struct{} // closed when the session begins to end
	dropped chan struct{} // closed when all of a session that has ended is closed or parked
}

// established says whether the session has keys.
func (sn *session) established() bool {
	st := sn.state.Load()
	return st == sessionValid || st == sessionExpired
}

// expire makes the session want authentication again: everything but LOGOFF, CLOSE and LOCK is refused with STATUS_NETWORK_SESSION_EXPIRED.
func (sn *session) expire() { sn.state.CompareAndSwap(sessionValid, sessionExpired) }

// beginCreate notes that a CREATE of the session is being worked on. It holds no open yet by which it could be waited for, and can change files. It returns
// false if the session has ended.
func (sn *session) beginCreate() bool {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.state.Load() == sessionGone {
		return false
	}
	sn.creates++
	return true
}

func (sn *session) endCreate() {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	if sn.creates--; sn.creates == 0 && sn.lastDone != nil {
		close(sn.lastDone)
		sn.lastDone = nil
	}
}

// waitCreates returns when no CREATE of a session that has ended is being worked on.
func (sn *session) waitCreates() {
	sn.mu.Lock()
	var ch chan struct{}
	if sn.creates > 0 {
		if sn.lastDone == nil {
			sn.lastDone = make(chan struct{})
		}
		ch = sn.lastDone
	}
	sn.mu.Unlock()
	if ch != nil {
		<-ch
	}
}

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
	var ch *channel
	binding := req.Flags&wire.SessionFlagBinding != 0
	if binding {
		var st ntstatus.Status
		if ch, st = r.findBinding(); st != ntstatus.Success {
			return st, nil
		}
	} else if r.hdr.SessionID == 0 {
		if ch = c.newSession(); ch == nil {
			return ntstatus.InsufficientResources, nil
		}
	} else if ch = c.channel(r.hdr.SessionID); ch == nil || ch.sn.state.Load() == sessionGone {
		return ntstatus.UserSessionDeleted, nil
	}
	sn := ch.sn
	reauth := !binding && sn.established()
	r.sess = sn
	if !binding {
		r.signer = ch.signer
	}
	if reauth {
		if st := r.verify(); st != ntstatus.Success {
			return st, nil
		}
	}
	giveUp := func() {
		ch.acceptor = nil
		if binding {
			delete(c.bindings, sn.id) // the session goes on without this connection
		} else {
			c.srv.dropSession(sn)
		}
	}
	if ch.acceptor == nil {
		ch.acceptor, ch.setups = c.srv.newAcceptor(), 0
		ch.preauth = c.preauth
	}
	if c.dialect == wire.Dialect311 && !reauth {
		ch.preauth.Update(r.msg)
	}
	if ch.setups++; ch.setups > maxSetups {
		giveUp()
		return ntstatus.InsufficientResources, nil
	}
	token, done, err := ch.acceptor.Token(req.SecurityBuffer)
	if err != nil {
		st := ntstatus.LogonFailure
		if s, ok := ntstatus.Of(err); ok && s.IsError() {
			st = s
		}
		c.log.Info("logon refused", "why", err)
		giveUp()
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
			r.w.hash = &ch.preauth
		}
		r.mustSign = binding
		return ntstatus.MoreProcessingRequired, nil
	}
	user, key := ch.acceptor.Identity().String(), ch.acceptor.SessionKey()
	ends := c.srv.sessionEnd(ch.acceptor)
	ch.acceptor = nil
	switch {
	case binding:
		delete(c.bindings, sn.id)
		if st := ch.bind(user, key); st != ntstatus.Success {
			return st, nil
		}
	case reauth:
		if !strings.EqualFold(user, sn.user) {
			c.log.Warn("session reauthenticated as somebody else", "was", sn.user, "is", user)
			c.srv.dropSession(sn)
			return ntstatus.AccessDenied, nil
		}
		sn.ends.Store(ends)
		sn.state.CompareAndSwap(sessionExpired, sessionValid)
	default:
		sn.ends.Store(ends)
		if st := ch.establish(user, key); st != ntstatus.Success {
			c.srv.dropSession(sn)
			return st, nil
		}
	}
	r.signer = ch.signer
	if sn.encrypt {
		resp.SessionFlags |= wire.SessionFlagEncryptData
	}
	if req.PreviousSessionID != 0 && req.PreviousSessionID != sn.id && !binding {
		c.srv.dropPrevious(req.PreviousSessionID, sn.user)
	}
	r.mustSign = true
	r.setBody(resp.Append(r.body()))
	return ntstatus.Success, nil
}

// establish makes the keys of a session whose user is known.
func (ch *channel) establish(user string, key []byte) ntstatus.Status {
	sn, c := ch.sn, ch.c
	keys := crypt.DeriveKeys(c.dialect, c.cipher, key, &ch.preauth)
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
	sn.user, sn.signer, sn.sealer, ch.signer = user, signer, sealer, signer
	if c.srv.cfg.KeyLog != nil {
		c.srv.cfg.KeyLog(sn.id, key)
	}
	c.authorise()
	if !sn.state.CompareAndSwap(sessionInProgress, sessionValid) {
		return ntstatus.UserSessionDeleted
	}
	c.log.Info("logged on", "user", user, "dialect", c.dialect, "encrypt", sn.encrypt)
	return ntstatus.Success
}

// sessionEnd is when a session that begins now, or is authenticated again, ends: with the proof of its user's identity, which is a Kerberos ticket's end, or when the server
// wants another one. [MS-SMB2] 3.3.5.5.3
func (s *Server) sessionEnd(a auth.Acceptor) int64 {
	var end time.Time
	if e, ok := a.(auth.Expirer); ok {
		end = e.Expiry()
	}
	if life := s.lim.SessionLifetime; life > 0 {
		if own := time.Now().Add(life); end.IsZero() || own.Before(end) {
			end = own
		}
	}
	if end.IsZero() {
		return 0
	}
	return end.UnixNano()
}

// newAcceptor returns the server's side of one authentication.
func (s *Server) newAcceptor() auth.Acceptor {
	var mechs []auth.MechAcceptor
	if s.cfg.Kerberos != nil {
		mechs = s.cfg.Kerberos.Mechanisms()
	}
	if s.cfg.Users != nil {
		mechs = append(mechs, auth.AcceptNTLM(auth.AcceptorConfig{Users: s.cfg.Users, Name: s.name}))
	}
	return auth.NewAcceptor(mechs...)
}

// newSession adds a session that is not authenticated yet, or returns nil if there are too many.
func (c *conn) newSession() *channel {
	s := c.srv
	sn := &session{srv: s, dialect: c.dialect, cipher: c.cipher, signingAlg: c.signingAlg, clientGUID: c.clientGUID, trees: map[uint32]*tree{}, opens: map[uint64]*open{}, gone: make(chan struct{}), dropped: make(chan struct{})}
	ch := &channel{sn: sn, c: c}
	sn.channels = []*channel{ch}
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
		c.sessions[sn.id] = ch
	}
	c.mu.Unlock()
	if full {
		s.dropSession(sn)
		return nil
	}
	return ch
}

// guidTag makes the session identifiers of two runs of the server differ.
func (s *Server) guidTag() uint32 { return uint32(s.started.UnixNano()>>20) | 1 }

// dropSession ends a session on all its connections and closes what it has open. The last one that ended is remembered by each connection, so that
// requests that come too late get a signed answer.
func (s *Server) dropSession(sn *session) {
	sn.mu.Lock()
	before := sn.state.Swap(sessionGone) // from now on no channel is added
	list := slices.Clone(sn.channels)
	sn.mu.Unlock()
	if before == sessionGone {
		return
	}
	close(sn.gone)
	for _, ch := range list {
		c := ch.c
		c.mu.Lock()
		delete(c.sessions, sn.id)
		if before != sessionInProgress {
			c.ended = ch
		}
		c.last.Store(nil)
		c.mu.Unlock()
	}
	sn.waitCreates() // none makes an open any more, nor empties a file
	sn.closeOpens(nil)
	sn.cancelPending(nil, ntstatus.UserSessionDeleted)
	sn.mu.Lock()
	clear(sn.trees)
	sn.channels = nil
	sn.mu.Unlock()
	s.mu.Lock()
	delete(s.sessions, sn.id)
	s.mu.Unlock()
	close(sn.dropped)
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
		if o.beginClose() && !(t == nil && sn.srv.park(o)) {
			o.finishClose()
		}
	}
}

// dropPrevious ends the session that a client had before it lost its connection. [MS-SMB2] 3.3.5.5.3
func (s *Server) dropPrevious(id uint64, user string) {
	s.mu.Lock()
	old := s.sessions[id]
	s.mu.Unlock()
	if old == nil || old.state.Load() == sessionInProgress || old.user != user {
		return
	}
	s.dropSession(old)
	<-old.dropped // also if somebody else had begun: what is kept of it must be there for the new session
}

// logoff handles LOGOFF. [MS-SMB2] 3.3.5.6
func (r *request) logoff() ntstatus.Status {
	if wire.ParseEmptyRequest(r.msg) != nil {
		return ntstatus.InvalidParameter
	}
	r.c.srv.dropSession(r.sess)
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
	if err := r.signer.Verify(r.msg); err != nil {
		if !errors.Is(err, crypt.ErrSignature) {
			return ntstatus.InternalError
		}
		r.c.log.Warn("request refused", "why", err)
		r.hdr.Flags &^= wire.FlagSigned
		return ntstatus.AccessDenied
	}
	return ntstatus.Success
}
