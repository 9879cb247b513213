package client

import (
	"maps"
	"slices"

	"vdbridge/smb/wire"
)

// This client caches nothing, so it gives an oplock or lease back as soon as the server wants it. It takes them only because servers make no open durable
// without: a durable open that nobody could ask for would keep others out for as long as its client is away.

// held is the oplock or lease of an open. Session.mu guards it.
type held struct {
	oplock uint8
	lease  wire.Lease // if oplock is OplockLease
}

// keeps says whether the open is durable with it.
func (h *held) keeps() bool {
	return h.oplock == wire.OplockBatch || h.oplock == wire.OplockLease && h.lease.State&wire.LeaseHandle != 0
}

// notice is a break notification.
type notice struct {
	oplock wire.OplockBreak
	lease  wire.LeaseBreak
	leased bool
}

// maxEarly bounds the notices that wait for their open to become known.
const maxEarly = 32

// hold makes the open known to be found by break notifications, those included that have come before the reply to the CREATE was seen.
func (f *File) hold(h held) {
	s := f.t.sess
	s.mu.Lock()
	f.held = h
	if h.oplock != wire.OplockNone {
		s.files[f.id] = f
	}
	early := s.early
	s.early = nil
	s.mu.Unlock()
	for _, n := range early {
		s.breaks(n)
	}
}

// forget is the opposite of hold.
func (f *File) forget() {
	s := f.t.sess
	s.mu.Lock()
	if s.files[f.id] == f {
		delete(s.files, f.id)
	}
	s.mu.Unlock()
}

// notified handles what the server sends on its own account. [MS-SMB2] 3.2.5.1.2, 3.2.5.19
func (c *Conn) notified(h *wire.Header, msg []byte) {
	if h.Command != wire.CmdOplockBreak {
		c.log.Debug("dropped a notification", "server", c.addr, "command", h.Command)
		return
	}
	var n notice
	var err error
	if n.leased = wire.IsLeaseBreak(msg); n.leased {
		n.lease, err = wire.ParseLeaseBreak(msg)
	} else {
		n.oplock, err = wire.ParseOplockBreakNotification(msg)
	}
	if err != nil {
		c.log.Debug("dropped an oplock break", "server", c.addr, "error", err)
		return
	}
	if !n.leased && c.cfg.OnOplockBreak != nil {
		c.cfg.OnOplockBreak(n.oplock)
	}
	// The header need not say whose it is.
	c.mu.Lock()
	list := slices.Collect(maps.Values(c.sessions))
	c.mu.Unlock()
	for _, ch := range list {
		ch.s.breaks(n)
	}
}

// breaks gives up what the notice is about, and tells the server.
func (s *Session) breaks(n notice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	if !n.leased {
		f := s.files[n.oplock.FileID]
		if f == nil {
			s.keepEarly(n)
			return
		}
		before := f.held.oplock
		if before == wire.OplockLease || n.oplock.OplockLevel >= before {
			return
		}
		f.lower(held{oplock: n.oplock.OplockLevel})
		if before != wire.OplockII {
			s.wg.Go(func() { f.acknowledge(n) })
		}
		return
	}
	var one *File
	for _, f := range s.files {
		if f.held.oplock != wire.OplockLease || f.held.lease.Key != n.lease.Key {
			continue
		}
		one = f
		h := f.held
		if h.lease.Version == 1 || n.lease.NewEpoch-h.lease.Epoch-1 < 0x7FFF {
			h.lease.State, h.lease.Epoch = n.lease.New, n.lease.NewEpoch
			f.lower(h)
		}
	}
	switch {
	case one == nil:
		s.keepEarly(n)
	case n.lease.Flags&wire.LeaseBreakAckRequired != 0:
		s.wg.Go(func() { one.acknowledge(n) })
	}
}

// keepEarly keeps a notice whose open is not known, perhaps not yet. It needs mu.
func (s *Session) keepEarly(n notice) {
	if len(s.early) == maxEarly {
		s.early = slices.Delete(s.early, 0, 1)
	}
	s.early = append(s.early, n)
}

// lower takes over what is left of oplock or lease. It needs Session.mu.
func (f *File) lower(h held) {
	f.held = h
	if !h.keeps() && !f.lasting.Persistent {
		f.lasting.Durable = false
	}
}

// acknowledge tells the server that the oplock or lease is given up. [MS-SMB2] 3.2.5.19.1 to 3.2.5.19.4
func (f *File) acknowledge(n notice) {
	s := f.t.sess
	a := attempt{repeat: always}
	for {
		r := f.request(wire.CmdOplockBreak, &a, 0)
		parse := func(msg []byte) error { _, err := wire.ParseOplockBreakNotification(msg); return err }
		if n.leased {
			r.out = wire.AppendLeaseBreakAck(r.out, wire.LeaseBreakAck{Key: n.lease.Key, State: n.lease.New})
			parse = func(msg []byte) error { _, err := wire.ParseLeaseBreakResponse(msg); return err }
		} else {
			r.out = wire.AppendOplockBreakAck(r.out, n.oplock)
		}
		err := a.exchange(s.ctx, r, 1)
		if err == nil {
			err = a.simple(r, parse)
		}
		if err == nil {
			return
		}
		if err = a.again(s.ctx, err); err != nil {
			s.c.log.Debug("oplock break acknowledgment", "path", f.path(), "error", err)
			s.mu.Lock()
			f.lower(held{})
			s.mu.Unlock()
			return
		}
	}
}
