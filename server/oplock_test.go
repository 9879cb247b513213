package server

import (
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// withLease adds the wish for a lease, version 2.
func withLease(req *wire.CreateRequest, key byte, state uint32) *wire.CreateRequest {
	req.OplockLevel = wire.OplockLease
	l := wire.Lease{Version: 2, Key: wire.GUID{key}, State: state}
	return with(req, wire.CreateContext{Name: wire.CreateLease, Data: l.Append(nil)})
}

// leaseOf is the state of the lease in a reply, zero if there is none.
func leaseOf(resp *wire.CreateResponse) uint32 {
	for _, c := range resp.Contexts {
		if c.Name == wire.CreateLease {
			l, err := wire.ParseLease(c.Data)
			if err == nil {
				return l.State
			}
		}
	}
	return 0
}

// next takes the next message, which may be an interim reply.
func (p *peer) next() *reply {
	p.t.Helper()
	rs := p.receive()
	if len(rs) != 1 {
		p.t.Fatalf("%d replies in one message", len(rs))
	}
	return rs[0]
}

// leaseBreak takes the next message, which must be the notification of a lease break.
func (p *peer) leaseBreak(from, to uint32) {
	p.t.Helper()
	r := p.answer()
	n, err := wire.ParseLeaseBreak(r.msg)
	if err != nil || r.hdr.Command != wire.CmdOplockBreak || r.hdr.MessageID != ^uint64(0) || r.hdr.SessionID != 0 {
		p.t.Fatalf("no lease break: %+v, %v", r.hdr, err)
	}
	if n.Current != from || n.New != to || (n.Flags&wire.LeaseBreakAckRequired != 0) != (from != cacheRead) {
		p.t.Fatalf("lease break %+v, want from %#x to %#x", n, from, to)
	}
}

func (p *peer) ackLease(key byte, state uint32) ntstatus.Status {
	p.t.Helper()
	return p.ask(wire.CmdOplockBreak, func(b []byte) []byte {
		return wire.AppendLeaseBreakAck(b, wire.LeaseBreakAck{Key: wire.GUID{key}, State: state})
	}).status()
}

// pending sends a CREATE that must wait: the interim reply comes.
func (p *peer) pending(req *wire.CreateRequest) {
	p.t.Helper()
	p.send(p.message(wire.CmdCreate, req.Append))
	if r := p.next(); r.status() != ntstatus.Pending {
		p.t.Fatalf("CREATE does not wait: %v", r.status())
	}
}

func (p *peer) created() *wire.CreateResponse {
	p.t.Helper()
	r := p.answer()
	check(p.t, "CREATE", r.status(), ntstatus.Success)
	resp, err := wire.ParseCreateResponse(r.msg)
	if err != nil {
		p.t.Fatal(err)
	}
	return &resp
}

// TestLeaseBreaks lets two clients cache one file, so that each sees what the other has written. [MS-SMB2] 3.3.4.7, 3.3.5.22.2
func TestLeaseBreaks(t *testing.T) {
	for _, seal := range []bool{false, true} {
		s := startServer(t, nil)
		p, q := s.client(t, 1, 0, "me", "disks"), s.client(t, 2, 0, "you", "disks")
		p.seal, q.seal = seal, seal
		resp, st := p.tryOpen(withLease(openReq("a"), 1, cacheAll))
		check(t, "open", st, ntstatus.Success)
		if leaseOf(resp) != cacheAll || resp.OplockLevel != wire.OplockLease {
			t.Fatalf("lease %#x, level %#x", leaseOf(resp), resp.OplockLevel)
		}
		a := resp.FileID
		q.pending(withLease(openReq("a"), 1, cacheAll)) // keys of different clients are different
		p.leaseBreak(cacheAll, cacheRead|cacheHandle)
		check(t, "WRITE during the break", p.write(a, 0, "flushed"), ntstatus.Success)
		check(t, "acknowledgement of more than there is", p.ackLease(1, cacheAll), ntstatus.RequestNotAccepted)
		check(t, "acknowledgement of another's lease", q.ackLease(7, 0), ntstatus.ObjectNameNotFound)
		check(t, "acknowledgement", p.ackLease(1, cacheRead|cacheHandle), ntstatus.Success)
		check(t, "acknowledgement once more", p.ackLease(1, cacheRead), ntstatus.Unsuccessful)
		resp = q.created()
		if leaseOf(resp) != cacheRead|cacheHandle {
			t.Errorf("lease of the second client %#x", leaseOf(resp))
		}
		b := resp.FileID
		if got, st := q.read(b, 0, 10); st != ntstatus.Success || got != "flushed" {
			t.Errorf("READ %q, %v", got, st)
		}
		// A write takes the caches of all others away, but does not wait for them.
		check(t, "WRITE", q.write(b, 0, "FL"), ntstatus.Success)
		p.leaseBreak(cacheRead|cacheHandle, 0)
		check(t, "acknowledgement", p.ackLease(1, 0), ntstatus.Success)
		if got, st := p.read(a, 0, 10); st != ntstatus.Success || got != "FLushed" {
			t.Errorf("READ %q, %v", got, st)
		}
		// The writer keeps its own, and the other gets one again, until the file is to go.
		if resp, _ = p.tryOpen(withLease(openReq("a"), 1, cacheRead|cacheHandle)); leaseOf(resp) != cacheRead|cacheHandle {
			t.Errorf("lease %#x", leaseOf(resp))
		}
		p.send(p.message(wire.CmdSetInfo, deleteReq(a)))
		if r := p.next(); r.status() != ntstatus.Pending {
			t.Errorf("deletion does not wait: %v", r.status())
		}
		q.leaseBreak(cacheRead|cacheHandle, cacheRead)
		check(t, "CLOSE instead of an acknowledgement", q.close(b), ntstatus.Success)
		check(t, "deletion", p.answer().status(), ntstatus.Success)
	}
}

func deleteReq(id wire.FileID) func([]byte) []byte {
	return (&wire.SetInfoRequest{InfoType: wire.InfoFile, FileInfoClass: 13, FileID: id, Buffer: []byte{1}}).Append
}

// TestOplockBreaks breaks a batch oplock to level II, and that by a write. [MS-SMB2] 3.3.4.6, 3.3.5.22.1
func TestOplockBreaks(t *testing.T) {
	s := startServer(t, nil)
	p, q := s.client(t, 1, 0, "me", "disks"), s.client(t, 2, 0, "you", "disks")
	batch := func() *wire.CreateRequest {
		r := openReq("a")
		r.OplockLevel = wire.OplockBatch
		return r
	}
	resp, _ := p.tryOpen(batch())
	if resp.OplockLevel != wire.OplockBatch {
		t.Fatalf("level %#x", resp.OplockLevel)
	}
	a := resp.FileID
	broken := func(want uint8) {
		t.Helper()
		r := p.answer()
		n, err := wire.ParseOplockBreakNotification(r.msg)
		if err != nil || n.FileID != a || n.OplockLevel != want || r.hdr.SessionID != p.sid {
			t.Fatalf("oplock break %+v, %v", n, err)
		}
	}
	ack := func(level uint8) ntstatus.Status {
		return p.ask(wire.CmdOplockBreak, func(b []byte) []byte {
			return wire.AppendOplockBreakAck(b, wire.OplockBreak{OplockLevel: level, FileID: a})
		}).status()
	}
	check(t, "acknowledgement of nothing", ack(wire.OplockNone), ntstatus.InvalidOplockProtocol)
	look := openReq("a")
	look.DesiredAccess, look.Disposition = wire.AccessReadAttributes, wire.FileOpen
	q.close(q.open(look)) // disturbs nobody
	q.pending(batch())
	broken(wire.OplockII)
	check(t, "acknowledgement", ack(wire.OplockII), ntstatus.Success)
	resp = q.created()
	if resp.OplockLevel != wire.OplockII {
		t.Errorf("level of the second %#x", resp.OplockLevel)
	}
	check(t, "WRITE", q.write(resp.FileID, 0, "x"), ntstatus.Success)
	broken(wire.OplockNone)
}

// TestBreakEnds: a break ends with its time, with the client's connection, and with the request that needs it. [MS-SMB2] 3.3.6.5, 3.3.7.1
func TestBreakEnds(t *testing.T) {
	s := startServer(t, func(c *Config) { c.Limits.BreakTimeout = time.Millisecond })
	p, q := s.client(t, 1, 0, "me", "disks"), s.client(t, 2, 0, "you", "disks")
	p.open(withLease(openReq("a"), 1, cacheAll))
	q.pending(withLease(openReq("a"), 1, cacheRead))
	p.leaseBreak(cacheAll, cacheRead|cacheHandle)
	if resp := q.created(); leaseOf(resp) != cacheRead {
		t.Errorf("lease after the time was over %#x", leaseOf(resp))
	}
	check(t, "acknowledgement that is late", p.ackLease(1, cacheRead), ntstatus.Unsuccessful)

	s = startServer(t, func(c *Config) { c.Limits.BreakTimeout = time.Hour })
	p, q = s.client(t, 1, 0, "me", "disks"), s.client(t, 2, 0, "you", "disks")
	p.open(withLease(openReq("a"), 1, cacheAll))
	q.pending(openReq("a"))
	p.leaseBreak(cacheAll, cacheRead|cacheHandle)
	m := q.message(wire.CmdCancel, wire.AppendEmptyRequest)
	q.nextID--
	le.PutUint64(m[24:], q.nextID-1)
	q.send(m)
	check(t, "CREATE that was cancelled", q.answer().status(), ntstatus.Cancelled)
	q.pending(openReq("a"))
	s.cut(t, p)
	q.created()
}

// TestBreakOnAnotherChannel loses the connection by which an oplock came.
func TestBreakOnAnotherChannel(t *testing.T) {
	s := startServer(t, nil)
	p, q := s.client(t, 1, 0, "me", "disks"), s.client(t, 2, 0, "you", "disks")
	r, st := s.addChannel(t, p, wire.Dialect311, nil)
	check(t, "binding", st, ntstatus.Success)
	req := openReq("a")
	req.OplockLevel = wire.OplockExclusive
	id := p.open(req)
	s.cut(t, p)
	q.pending(openReq("a"))
	n, err := wire.ParseOplockBreakNotification(r.answer().msg)
	if err != nil || n.FileID != id {
		t.Fatalf("oplock break %+v, %v", n, err)
	}
	check(t, "CLOSE", r.close(id), ntstatus.Success)
	q.created()
}

// TestManyWait blocks more requests of a connection than it has workers; the answer that they wait for comes by the same connection.
func TestManyWait(t *testing.T) {
	s := startServer(t, func(c *Config) { c.Limits.MaxWorkers = 2 })
	p := s.client(t, 1, 0, "me", "disks")
	p.open(withLease(openReq("a"), 1, cacheAll))
	for i := range 8 {
		p.send(p.message(wire.CmdCreate, withLease(openReq("a"), byte(2+i), cacheRead).Append))
	}
	pending, notified := 0, false
	for pending < 8 || !notified {
		r := p.next()
		if r.hdr.Command == wire.CmdOplockBreak {
			notified = true
		} else if r.status() == ntstatus.Pending {
			pending++
		} else {
			t.Fatalf("CREATE: %v", r.status())
		}
	}
	p.send(p.message(wire.CmdOplockBreak, func(b []byte) []byte {
		return wire.AppendLeaseBreakAck(b, wire.LeaseBreakAck{Key: wire.GUID{1}, State: cacheRead})
	}))
	for range 9 { // in any order
		r := p.answer()
		check(t, r.hdr.Command.String(), r.status(), ntstatus.Success)
	}
}
