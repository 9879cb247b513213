package server

import (
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// TestLeasesSurvive: what the client of a persistent open may cache survives its connection and the server, as far as that is still right.
func TestLeasesSurvive(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	p, q := s.client(t, 1, 0, "me", "ca"), s.client(t, 2, 0, "you", "ca")
	persistent := func(name string, guid, key byte, state uint32) *wire.CreateRequest {
		return withLease(with(openReq(name), dh2q(guid, time.Minute, flagPersistent)), key, state)
	}
	back := func(name string, id wire.FileID, guid, key byte) *wire.CreateRequest {
		return withLease(with(openReq(name), dh2c(id, guid, flagPersistent)), key, 0)
	}
	alone := p.open(persistent("alone", 1, 11, cacheAll))
	shared := p.open(persistent("shared", 2, 12, cacheAll))
	batch := openReq("batch")
	batch.OplockLevel = wire.OplockBatch
	old := p.open(with(batch, dh2q(3, time.Minute, flagPersistent)))
	q.pending(persistent("shared", 4, 12, cacheAll))
	p.leaseBreak(cacheAll, cacheRead|cacheHandle)
	check(t, "acknowledgement", p.ackLease(12, cacheRead|cacheHandle), ntstatus.Success)
	second := q.created().FileID
	for round := range 3 {
		if round == 1 {
			s.cut(t, p)
			s.cut(t, q)
		} else {
			state := l.kill(s)
			s = l.start(state)
		}
		p, q = s.client(t, 1, 0, "me", "ca"), s.client(t, 2, 0, "you", "ca")
		_, st := p.tryOpen(with(openReq("alone"), dh2c(alone, 1, flagPersistent)))
		check(t, "reconnect without the lease", st, ntstatus.ObjectNameNotFound)
		_, st = p.tryOpen(back("alone", alone, 1, 99))
		check(t, "reconnect with another lease", st, ntstatus.ObjectNameNotFound)
		for what, c := range map[string]struct {
			p    *peer
			req  *wire.CreateRequest
			id   *wire.FileID
			want uint32
		}{
			"alone":              {p, back("alone", alone, 1, 11), &alone, cacheAll},
			"shared":             {p, back("shared", shared, 2, 12), &shared, cacheRead | cacheHandle},
			"shared, the second": {q, back("shared", second, 4, 12), &second, cacheRead | cacheHandle},
		} {
			resp, st := c.p.tryOpen(c.req)
			check(t, "reconnect: "+what, st, ntstatus.Success)
			if got := leaseOf(resp); got != c.want {
				t.Errorf("round %d: %s has the lease %#x, want %#x", round, what, got, c.want)
			}
			*c.id = resp.FileID
		}
		resp, st := p.tryOpen(with(openReq("batch"), dh2c(old, 3, flagPersistent)))
		check(t, "reconnect: batch", st, ntstatus.Success)
		if resp.OplockLevel != wire.OplockBatch {
			t.Errorf("round %d: oplock level %#x", round, resp.OplockLevel)
		}
		old = resp.FileID
	}
	// It is a lease like any other.
	q.pending(openReq("alone"))
	p.leaseBreak(cacheAll, cacheRead|cacheHandle)
	check(t, "acknowledgement", p.ackLease(11, cacheRead), ntstatus.Success)
	q.created()
}

// TestDurable: an open with a batch oplock or a lease that caches handles waits for its client, until somebody else wants the file. [MS-SMB2] 3.3.5.9.7, 3.3.5.9.12
func TestDurable(t *testing.T) {
	dhnq := wire.CreateContext{Name: wire.CreateDurableRequest, Data: make([]byte, 16)}
	dhnc := func(id wire.FileID) wire.CreateContext {
		b := le.AppendUint64(nil, id.Persistent)
		return wire.CreateContext{Name: wire.CreateDurableConnect, Data: le.AppendUint64(b, id.Volatile)}
	}
	s := startServer(t, nil)
	for what, c := range map[string]struct {
		open, back func(id wire.FileID) *wire.CreateRequest
	}{
		"version 1": {func(wire.FileID) *wire.CreateRequest { return withLease(with(openReq("a"), dhnq), 1, cacheAll) },
			func(id wire.FileID) *wire.CreateRequest { return withLease(with(openReq("a"), dhnc(id)), 1, 0) }},
		"version 2": {func(wire.FileID) *wire.CreateRequest {
			return withLease(with(openReq("a"), dh2q(5, 0, 0)), 1, cacheAll)
		},
			func(id wire.FileID) *wire.CreateRequest { return withLease(with(openReq("a"), dh2c(id, 5, 0)), 1, 0) }},
	} {
		p, q := s.client(t, 1, 0, "me", "disks"), s.client(t, 2, 0, "you", "disks")
		resp, st := p.tryOpen(c.open(wire.FileID{}))
		check(t, what, st, ntstatus.Success)
		if len(resp.Contexts) != 2 {
			t.Fatalf("%s: contexts %+v", what, resp.Contexts)
		}
		id := resp.FileID
		check(t, "WRITE", p.write(id, 0, "kept"), ntstatus.Success)
		s.cut(t, p)
		p = s.client(t, 1, 0, "me", "disks")
		_, st = s.client(t, 1, 0, "you", "disks").tryOpen(c.back(id))
		check(t, what+": reconnect by another user", st, ntstatus.AccessDenied)
		_, st = s.client(t, 3, 0, "me", "disks").tryOpen(c.back(id))
		check(t, what+": reconnect by another client", st, ntstatus.ObjectNameNotFound)
		resp, st = p.tryOpen(c.back(id))
		check(t, what+": reconnect", st, ntstatus.Success)
		if leaseOf(resp) != cacheAll || resp.EndOfFile != 4 {
			t.Errorf("%s: reply %+v", what, resp)
		}
		id = resp.FileID
		s.cut(t, p)
		// Who only looks leaves it; who wants the file gets it.
		look := openReq("a")
		look.DesiredAccess, look.Disposition = wire.AccessReadAttributes, wire.FileOpen
		check(t, "CLOSE", q.close(q.open(look)), ntstatus.Success)
		check(t, "CLOSE", q.close(q.open(openReq("a"))), ntstatus.Success)
		p = s.client(t, 1, 0, "me", "disks")
		_, st = p.tryOpen(c.back(id))
		check(t, what+": reconnect when somebody else has opened the file", st, ntstatus.ObjectNameNotFound)
	}
	// Without such a right an open is as short-lived as its connection.
	p := s.client(t, 1, 0, "me", "disks")
	resp, st := p.tryOpen(withLease(with(openReq("a"), dhnq), 1, cacheRead))
	check(t, "open", st, ntstatus.Success)
	if len(resp.Contexts) != 1 {
		t.Errorf("contexts %+v", resp.Contexts)
	}
}

func FuzzLeases(f *testing.F) {
	l := wire.Lease{Version: 2, Key: wire.GUID{1}, State: 7, Flags: 4, Parent: wire.GUID{2}, Epoch: 3}
	f.Add(l.Append(nil))
	l.Version = 1
	f.Add(l.Append(nil))
	f.Add(wire.AppendLeaseBreakAck(make([]byte, wire.HeaderSize), wire.LeaseBreakAck{Key: wire.GUID{1}, State: 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := wire.ParseLeaseRequest(b); err == nil {
			again, err := wire.ParseLease(got.Append(nil))
			if err != nil || again != got {
				t.Errorf("%+v became %+v, %v", got, again, err)
			}
		}
		if wire.IsLeaseBreakAck(b) {
			if a, err := wire.ParseLeaseBreakAck(b); err == nil {
				got, err := wire.ParseLeaseBreakResponse(a.Append(make([]byte, wire.HeaderSize)))
				if err != nil || got != a {
					t.Errorf("%+v became %+v, %v", a, got, err)
				}
			}
		}
	})
}
