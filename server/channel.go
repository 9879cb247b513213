package server

import (
	"slices"
	"strings"

	"vdbridge/smb/auth"
	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// maxChannels is how many connections a session may have.
const maxChannels = 32

// channel is a session on one of its connections. [MS-SMB2] 3.3.1.14
type channel struct {
	sn     *session
	c      *conn
	signer *crypt.Signer // constant once the session is established, or the channel bound

	// Of the reading goroutine of c, which runs all SESSION_SETUPs.
	acceptor auth.Acceptor
	preauth  crypt.Preauth
	setups   int
}

// findBinding finds the channel that a SESSION_SETUP with the binding flag wants to authenticate, or makes it. The request was signed with the
// session's key if the status is success. [MS-SMB2] 3.3.5.5, step 4
func (r *request) findBinding() (*channel, ntstatus.Status) {
	c, s := r.c, r.c.srv
	if c.dialect < wire.Dialect300 {
		return nil, ntstatus.RequestNotAccepted
	}
	s.mu.Lock()
	sn := s.sessions[r.hdr.SessionID]
	s.mu.Unlock()
	if sn == nil {
		return nil, ntstatus.UserSessionDeleted
	}
	if r.hdr.Flags&wire.FlagSigned != 0 && sn.established() && sn.signer.Verify(r.msg) == nil {
		// It comes from the session's user, who can believe a refusal only if it is signed. Others must not get signatures out of the server.
		r.sess, r.signer = sn, sn.signer
	}
	switch {
	case c.dialect != sn.dialect, r.hdr.Flags&wire.FlagSigned == 0:
		return nil, ntstatus.InvalidParameter
	case c.clientGUID != sn.clientGUID:
		return nil, ntstatus.UserSessionDeleted
	case c.signingAlg == wire.SigningAESGMAC && sn.signingAlg != wire.SigningAESGMAC:
		return nil, ntstatus.NotSupported // as Windows says it
	case c.signingAlg != wire.SigningAESGMAC && sn.signingAlg == wire.SigningAESGMAC:
		return nil, ntstatus.RequestOutOfSequence
	}
	switch sn.state.Load() {
	case sessionInProgress:
		return nil, ntstatus.RequestNotAccepted
	case sessionExpired:
		return nil, ntstatus.NetworkSessionExpired
	case sessionGone:
		return nil, ntstatus.UserSessionDeleted
	}
	c.mu.Lock()
	here := c.sessions[sn.id] != nil
	c.mu.Unlock()
	if here {
		return nil, ntstatus.RequestNotAccepted
	}
	r.sess, r.signer = sn, sn.signer
	if st := r.verify(); st != ntstatus.Success {
		return nil, st
	}
	if c.cipher != sn.cipher {
		// The session's sealing keys are of the other cipher.
		return nil, ntstatus.InvalidParameter
	}
	ch := c.bindings[sn.id]
	if ch != nil && ch.sn == sn {
		return ch, ntstatus.Success
	}
	if len(c.bindings) >= maxInProgress {
		return nil, ntstatus.InsufficientResources
	}
	ch = &channel{sn: sn, c: c}
	c.bindings[sn.id] = ch
	return ch, ntstatus.Success
}

// bind adds the authenticated channel to its session. [MS-SMB2] 3.3.5.5.3
func (ch *channel) bind(user string, key []byte) ntstatus.Status {
	sn, c := ch.sn, ch.c
	if !strings.EqualFold(user, sn.user) {
		c.log.Warn("channel refused: it is somebody else's session", "user", user)
		return ntstatus.NotSupported
	}
	signer, err := crypt.NewSigner(c.signingAlg, crypt.SigningKey(c.dialect, key, &ch.preauth))
	if err != nil {
		c.log.Error("channel key", "err", err)
		return ntstatus.InternalError
	}
	ch.signer = signer
	sn.mu.Lock()
	defer sn.mu.Unlock()
	switch {
	case sn.state.Load() == sessionGone, len(sn.channels) == 0:
		return ntstatus.UserSessionDeleted
	case len(sn.channels) >= maxChannels:
		return ntstatus.InsufficientResources
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.sessions) >= maxSessionsPerConn {
		return ntstatus.InsufficientResources
	}
	c.sessions[sn.id] = ch
	sn.channels = append(sn.channels, ch)
	c.authorise()
	c.log.Info("channel added", "user", sn.user, "channels", len(sn.channels))
	return ntstatus.Success
}

// drop takes a lost connection out of the session, which ends with its last one. [MS-SMB2] 3.3.7.1
func (ch *channel) drop() {
	sn := ch.sn
	sn.mu.Lock()
	sn.channels = slices.DeleteFunc(sn.channels, func(e *channel) bool { return e == ch })
	last := len(sn.channels) == 0
	sn.mu.Unlock()
	if last {
		sn.srv.dropSession(sn)
	}
}

// cancelPending ends the pending operations of a session, or of one of its opens, on whatever connection they are.
func (sn *session) cancelPending(o *open, st ntstatus.Status) {
	var room [4]*conn
	conns := room[:0]
	sn.mu.RLock()
	for _, ch := range sn.channels {
		conns = append(conns, ch.c)
	}
	sn.mu.RUnlock()
	for _, c := range conns {
		c.cancelPendingOf(sn, o, st)
	}
}
