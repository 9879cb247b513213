package server

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/wire"
)

// leases are all leases by their names. Its lock is the last one to be taken. [MS-SMB2] 3.3.1.11
type leases struct {
	mu sync.Mutex
	m  map[leaseID]*oplock
}

func (t *leases) init() { t.m = map[leaseID]*oplock{} }

func (t *leases) lookup(id leaseID) *oplock {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.m[id]
}

// add fails if there is such a lease already, which can only be one of another file.
func (t *leases) add(k *oplock) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[k.rec.ID] != nil {
		return false
	}
	t.m[k.rec.ID] = k
	return true
}

func (t *leases) drop(k *oplock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[k.rec.ID] == k {
		delete(t.m, k.rec.ID)
	}
}

// sendNotes sends notifications, each on the first connection that takes it. If none does, the client is gone: its session is about to end, and the break
// with it. If the open is persistent, its client is told when it comes back in time. [MS-SMB2] 3.3.4.6, 3.3.4.7
func (s *Server) sendNotes(notes []*breakNote) {
	for _, n := range notes {
		if s.sendNote(n) || n.round == 0 {
			continue
		}
		n.k.obj.mu.Lock()
		if k := n.k; k.breaking && k.round == n.round {
			k.pending = append(k.pending, n)
		}
		n.k.obj.mu.Unlock()
	}
}

func (s *Server) sendNote(n *breakNote) bool {
	var channels []*channel
	for _, sn := range n.sessions {
		sn.mu.RLock()
		channels = append(channels, sn.channels...)
		sn.mu.RUnlock()
	}
	if n.k.isLease {
		// Any connection of the client will do, the oldest one first.
		var others []*session
		s.mu.Lock()
		for _, sn := range s.sessions {
			if sn.clientGUID == n.k.rec.ID.client && sn.established() && !slices.Contains(n.sessions, sn) {
				others = append(others, sn)
			}
		}
		s.mu.Unlock()
		for _, sn := range others {
			sn.mu.RLock()
			channels = append(channels, sn.channels...)
			sn.mu.RUnlock()
		}
	}
	slices.SortStableFunc(channels, func(a, b *channel) int {
		if !n.k.isLease && a.c != b.c {
			// The connection of the CREATE first: there the notification, which names what the reply has named, cannot come before it.
			switch n.via {
			case a.c:
				return -1
			case b.c:
				return 1
			}
		}
		return cmp.Compare(a.c.born, b.c.born)
	})
	for _, ch := range channels {
		if ch.sendBreak(n) == nil {
			return true
		}
	}
	return false
}

var errNoSealer = errors.New("the session has no keys to encrypt with")

// sendBreak sends a notification on one channel. It is not signed.
func (ch *channel) sendBreak(n *breakNote) error {
	c, sn := ch.c, ch.sn
	if err := c.ctx.Err(); err != nil {
		return err
	}
	h := wire.Header{Command: wire.CmdOplockBreak, Flags: wire.FlagServerToRedir, MessageID: ^uint64(0)}
	if !n.k.isLease {
		h.SessionID = sn.id
	}
	sealed := n.sealed || sn.encrypt
	if sealed && sn.sealer == nil {
		return errNoSealer
	}
	w := getWork(c, 0)
	w.out = getBuffer(crypt.SealRoom + wire.HeaderSize + 64)
	w.addCost(int64(cap(w.out.b)))
	b := w.out.b[:crypt.SealRoom+wire.HeaderSize]
	h.Put(b[crypt.SealRoom:])
	if n.k.isLease {
		b = n.lease.Append(b)
	} else {
		b = wire.AppendOplockBreakResponse(b, n.oplock)
	}
	w.out.b = b
	if sealed {
		if err := sn.sealer.Seal(b); err != nil {
			w.free()
			return err
		}
	} else {
		b = b[crypt.SealRoom:]
	}
	w.seg[0] = b
	c.queued.Add(1)
	return c.sender.Send(c.ctx, transport.Message(w.seg[:]), w)
}

// announce says that the client has been sent the reply that tells it of k, so that it may hear of a break.
func (k *oplock) announce() {
	k.obj.mu.Lock()
	var notes []*breakNote
	if k.unsent--; k.unsent == 0 {
		notes, k.pending = k.pending, nil
		if k.breaking && k.timer == nil {
			k.startTimer()
		}
	}
	k.obj.mu.Unlock()
	k.obj.share.srv.sendNotes(notes)
}

// purge closes opens whose clients are away.
func (s *Server) purge(list []*open) {
	for _, o := range list {
		t := &s.durables
		t.mu.Lock()
		taken := o.durable.parked.Load() && !t.closed
		if taken {
			o.durable.take()
			t.wg.Add(1)
		}
		t.mu.Unlock()
		if taken {
			s.log.Info("durable open closed: somebody else wants the file", "path", o.currentRel())
			o.finishClose()
			t.wg.Done()
		}
	}
}

// settle does what a contention wants done without locks, and does not wait.
func (s *Server) settle(c *contention) {
	s.sendNotes(c.notes)
	s.purge(c.purge)
	for _, obj := range c.freed {
		obj.hostUnlock()
	}
	c.notes, c.purge, c.freed = nil, nil, nil
}

// await settles a contention and waits until its breaks are over. The caller holds neither locks nor names. [MS-SMB2] 3.3.4.2
func (r *request) await(c *contention) ntstatus.Status {
	r.c.srv.settle(c)
	if r.c.ctx.Err() != nil {
		return ntstatus.Cancelled
	}
	if len(c.done) == 0 {
		return ntstatus.Success
	}
	cancel, st := r.beginWait()
	if st != ntstatus.Success {
		return st
	}
	defer r.c.workers.unblock()
	for _, done := range c.done {
		select {
		case <-done:
		case <-cancel:
			return ntstatus.Cancelled
		case <-r.c.ctx.Done():
			return ntstatus.Cancelled
		case <-r.sess.gone:
			return ntstatus.UserSessionDeleted
		}
	}
	c.done = nil
	return ntstatus.Success
}

// beginWait makes the request ready to wait for another client: it gets an interim reply, it can be cancelled, and it does not count among the
// workers of its connection, so that the answer that it waits for can come by the same one.
func (r *request) beginWait() (cancel <-chan struct{}, st ntstatus.Status) {
	c := r.c
	if !c.workers.block(c.srv.lim.MaxPending) {
		return nil, ntstatus.InsufficientResources
	}
	c.interimMu.Lock()
	defer c.interimMu.Unlock()
	c.mu.Lock()
	if r.cancelled {
		c.mu.Unlock()
		c.workers.unblock()
		return nil, ntstatus.Cancelled
	}
	if r.wake == nil {
		r.wake = make(chan struct{})
	}
	var interim *work
	if r.asyncID == 0 && r.w.ids == 1 {
		interim = c.makeInterim(r)
	}
	c.mu.Unlock()
	if interim != nil {
		interim.send()
	}
	return r.wake, ntstatus.Success
}

// contend makes others give up what an operation on o needs, and waits for them.
func (r *request) contend(o *open, op operation) ntstatus.Status {
	for {
		var c contention
		o.obj.mu.Lock()
		o.obj.contend(o, op, &c)
		o.obj.mu.Unlock()
		again := c.waits()
		if st := r.await(&c); st != ntstatus.Success || !again {
			return st
		}
	}
}

// wrote tells those that cache a file that it has changed. It comes after the change and before the reply, so that nobody who hears of the
// change from the writer still finds the old contents at the server.
func (s *Server) wrote(o *open) {
	if o.obj.readers.Load() == 0 {
		return
	}
	var c contention
	o.obj.mu.Lock()
	o.obj.contend(o, opWrite, &c)
	o.obj.mu.Unlock()
	s.settle(&c)
}

// oplockBreak handles OPLOCK_BREAK. [MS-SMB2] 3.3.5.22
func (r *request) oplockBreak() ntstatus.Status {
	if wire.IsLeaseBreakAck(r.msg) {
		return r.leaseAck()
	}
	req, err := wire.ParseOplockBreakAck(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	if st := r.findOpen(req.FileID); st != ntstatus.Success {
		return st
	}
	o := r.file
	if o.obj == nil {
		return ntstatus.InvalidOplockProtocol
	}
	level, st := o.ackOplock(req.OplockLevel)
	if st != ntstatus.Success {
		return st
	}
	r.setBody(wire.AppendOplockBreakResponse(r.body(), wire.OplockBreak{OplockLevel: level, FileID: o.id}))
	return ntstatus.Success
}

// ackOplock takes the client's answer to a break. level is what it has from now on. [MS-SMB2] 3.3.5.22.1
func (o *open) ackOplock(answer uint8) (level uint8, st ntstatus.Status) {
	var c contention
	defer func() { o.share0.srv.settle(&c) }()
	obj := o.obj
	obj.mu.Lock()
	defer obj.mu.Unlock()
	k := o.oplock
	if k == nil || k.isLease {
		return 0, ntstatus.InvalidOplockProtocol
	}
	if !k.breaking {
		return 0, ntstatus.InvalidOplockProtocol
	}
	switch {
	case answer == wire.OplockLease:
		st = ntstatus.InvalidParameter
	case answer == wire.OplockNone, answer == wire.OplockII:
	case answer == wire.OplockExclusive && k.rec.State == cacheAll:
		answer = wire.OplockNone
	default:
		st = ntstatus.InvalidOplockProtocol
	}
	if st != ntstatus.Success || oplockLevel(k.breakTo) == wire.OplockNone {
		answer = wire.OplockNone
	}
	k.finish(stateOf(answer), &c)
	return answer, st
}

// leaseAck handles the acknowledgement of a lease break. [MS-SMB2] 3.3.5.22.2
func (r *request) leaseAck() ntstatus.Status {
	req, err := wire.ParseLeaseBreakAck(r.msg)
	if err != nil {
		return ntstatus.InvalidParameter
	}
	s := r.c.srv
	k := s.leases.lookup(leaseID{r.c.clientGUID, req.Key})
	if k == nil {
		return ntstatus.ObjectNameNotFound
	}
	if st := k.ack(req.State, r.sess); st != ntstatus.Success {
		return st
	}
	r.setBody(req.Append(r.body()))
	return ntstatus.Success
}

func (k *oplock) ack(state uint32, sn *session) ntstatus.Status {
	var c contention
	defer func() { k.obj.share.srv.settle(&c) }()
	k.obj.mu.Lock()
	defer k.obj.mu.Unlock()
	if k.gone {
		return ntstatus.ObjectNameNotFound
	}
	for _, o := range k.opens {
		if !strings.EqualFold(o.sess.user, sn.user) {
			return ntstatus.ObjectNameNotFound // client GUIDs are no secret
		}
		if o.durable != nil {
			o.durable.replayable.Store(false)
		}
	}
	switch {
	case !k.breaking:
		return ntstatus.Unsuccessful
	case state&^k.breakTo != 0:
		return ntstatus.RequestNotAccepted
	}
	k.finish(validState(state), &c)
	return ntstatus.Success
}
