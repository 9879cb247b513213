package server

import (
	"sync"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// pendingOp is a request without a foreseeable end: a change notification, or a lock that is waited for. Its interim reply is sent by the request that
// made it; it ends once, by complete.
//
// It holds no buffer, only what its final reply needs.
type pendingOp struct {
	c       *conn
	hdr     wire.Header
	sess    *session
	signer  *crypt.Signer // of the final reply if it is signed
	file    *open         // not acquired: CLOSE ends the operation
	asyncID uint64
	sealed  bool

	// onCancel takes the operation out of whatever would complete it. It is called at most once, without locks held.
	onCancel func()
	// closeStatus is the status when the open is closed, zero for the caller's choice.
	closeStatus ntstatus.Status

	mu     sync.Mutex
	armed  bool // the interim reply is on its way, the final one may follow
	ended  bool
	status ntstatus.Status
	body   []byte // nil for an error body
}

// goAsync makes the current request, which must be the last one of its compound, asynchronous. It returns nil if it was cancelled before, or there are too many
// of the kind.
func (r *request) goAsync(o *open, onCancel func()) (*pendingOp, ntstatus.Status) {
	c := r.c
	op := &pendingOp{c: c, hdr: r.hdr, sess: r.sess, signer: r.signer, file: o, sealed: r.w.transform != nil, onCancel: onCancel}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !r.last:
		return nil, ntstatus.InternalError
	case r.cancelled:
		return nil, ntstatus.Cancelled
	case len(c.pending) >= c.srv.lim.MaxPending:
		return nil, ntstatus.InsufficientResources
	}
	if r.asyncID != 0 {
		op.asyncID = r.asyncID
	} else {
		c.asyncID++
		op.asyncID = c.asyncID
		r.asyncID = op.asyncID // the janitor need not send an interim reply
	}
	c.pending[op.asyncID] = op
	r.op = op
	return op, ntstatus.Success
}

// arm lets the final reply follow the interim one.
func (op *pendingOp) arm() {
	op.mu.Lock()
	op.armed = true
	ended := op.ended
	op.mu.Unlock()
	if ended {
		op.reply()
	}
}

// complete ends the operation; only the first call counts. body is the reply's body, nil for an error.
func (op *pendingOp) complete(st ntstatus.Status, body []byte) bool {
	op.mu.Lock()
	if op.ended {
		op.mu.Unlock()
		return false
	}
	op.ended, op.status, op.body = true, st, body
	armed := op.armed
	op.mu.Unlock()
	op.c.mu.Lock()
	delete(op.c.pending, op.asyncID)
	op.c.mu.Unlock()
	if armed {
		op.reply()
	}
	return true
}

// cancel ends the operation with st.
func (op *pendingOp) cancel(st ntstatus.Status) {
	if op.complete(st, nil) && op.onCancel != nil {
		op.onCancel()
	}
}

// reply sends the final reply. It grants no credits, as the interim reply did. [MS-SMB2] 3.3.4.3
func (op *pendingOp) reply() {
	w := getWork(op.c, 0)
	body := op.body
	if body == nil {
		body = []byte{9, 0, 0, 0, 0, 0, 0, 0, 0}
	}
	w.out = getBuffer(crypt.SealRoom + wire.HeaderSize + len(body))
	w.addCost(int64(cap(w.out.b)))
	h := wire.Header{CreditCharge: op.hdr.CreditCharge, Status: uint32(op.status), Command: op.hdr.Command,
		Flags:     wire.FlagServerToRedir | wire.FlagAsync | op.hdr.Flags&wire.FlagPriorityMask,
		MessageID: op.hdr.MessageID, AsyncID: op.asyncID, SessionID: op.sess.id}
	h.Put(w.out.b[crypt.SealRoom:])
	copy(w.out.b[crypt.SealRoom+wire.HeaderSize:], body)
	p := part{at: crypt.SealRoom}
	if op.sealed {
		w.sealBy = op.sess
	} else if op.hdr.Flags&wire.FlagSigned != 0 {
		p.sign = op.signer
	}
	w.addPart(p)
	w.send()
}

// receiveCancel handles CANCEL, which has no reply. [MS-SMB2] 3.3.5.16
func (c *conn) receiveCancel(w *work, h *wire.Header) error {
	// Somebody who is not the session's user must not be able to cancel its requests.
	ch := c.channel(h.SessionID)
	if ch == nil || !ch.sn.established() || h.NextCommand != 0 {
		return nil
	}
	sn := ch.sn
	if w.transform != nil {
		if w.transform != sn {
			return nil
		}
	} else if h.Flags&wire.FlagSigned == 0 || ch.signer.Verify(w.msg) != nil {
		return nil
	}
	var op *pendingOp
	c.mu.Lock()
	if h.Flags&wire.FlagAsync != 0 {
		op = c.pending[h.AsyncID]
		for r := c.running.next; r != &c.running; r = r.next {
			if r.asyncID == h.AsyncID {
				r.cancel()
			}
		}
	} else {
		for _, p := range c.pending {
			if p.hdr.MessageID == h.MessageID {
				op = p
			}
		}
		for r := c.running.next; r != &c.running; r = r.next {
			if r.firstID == h.MessageID {
				r.cancel()
			}
		}
	}
	c.mu.Unlock()
	if op != nil && op.sess == sn {
		op.cancel(ntstatus.Cancelled)
	}
	return nil
}

// cancel notes that the client does not want the request any more. conn.mu is held.
func (r *request) cancel() {
	if r.wake != nil && !r.cancelled {
		close(r.wake)
	}
	r.cancelled = true
}

// cancelPendingOf ends the pending operations of a session, or of one of its opens.
func (c *conn) cancelPendingOf(sn *session, o *open, st ntstatus.Status) {
	c.mu.Lock()
	var list []*pendingOp
	for _, op := range c.pending {
		if op.sess == sn && (o == nil || op.file == o) {
			list = append(list, op)
		}
	}
	c.mu.Unlock()
	for _, op := range list {
		if o != nil && op.closeStatus != ntstatus.Success {
			op.cancel(op.closeStatus)
		} else {
			op.cancel(st)
		}
	}
}

// cancelPending ends all pending operations of the connection.
func (c *conn) cancelPending() {
	c.mu.Lock()
	list := make([]*pendingOp, 0, len(c.pending))
	for _, op := range c.pending {
		list = append(list, op)
	}
	c.mu.Unlock()
	for _, op := range list {
		op.cancel(ntstatus.Cancelled)
	}
}
