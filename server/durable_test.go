package server

import (
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

func caServer(t testing.TB) *testServer {
	return startServer(t, func(c *Config) {
		c.Shares = append(c.Shares, Share{Name: "ca", Dir: c.Shares[0].Dir, CA: true}, Share{Name: "ca2", Dir: c.Shares[0].Dir, CA: true})
		c.Disks = &ramDisk{b: make([]byte, 1<<20)}
	})
}

// client connects as a client with this number, which is its GUID, in the place of its earlier session if there was one.
func (s *testServer) client(t testing.TB, number byte, previous uint64, user, share string) *peer {
	t.Helper()
	p := s.dialPeer(t)
	p.guid, p.caps, p.previous = wire.GUID{number}, wire.CapPersistentHandles|wire.CapMultiChannel, previous
	p.negotiate(wire.Dialect311)
	check(t, "logon", p.logon(user, "secret"), ntstatus.Success)
	p.tree(share)
	return p
}

func dh2q(guid byte, timeout time.Duration, flags uint32) wire.CreateContext {
	var b [32]byte
	le.PutUint32(b[:], uint32(timeout/time.Millisecond))
	le.PutUint32(b[4:], flags)
	b[16] = guid
	return wire.CreateContext{Name: wire.CreateDurableRequest2, Data: b[:]}
}

func dh2c(id wire.FileID, guid byte, flags uint32) wire.CreateContext {
	var b [36]byte
	le.PutUint64(b[:], id.Persistent)
	le.PutUint64(b[8:], id.Volatile)
	b[16] = guid
	le.PutUint32(b[32:], flags)
	return wire.CreateContext{Name: wire.CreateDurableConnect2, Data: b[:]}
}

func appContexts(id byte, high, low uint64) []wire.CreateContext {
	a, v := make([]byte, 20), make([]byte, 24)
	a[0], a[4] = 20, id
	v[0] = 24
	le.PutUint64(v[8:], high)
	le.PutUint64(v[16:], low)
	return []wire.CreateContext{{Name: wire.CreateAppInstanceID, Data: a}, {Name: wire.CreateAppInstanceVer, Data: v}}
}

func with(req *wire.CreateRequest, c ...wire.CreateContext) *wire.CreateRequest {
	req.Contexts = append(req.Contexts, c...)
	return req
}

// replay sends a CREATE with SMB2_FLAGS_REPLAY_OPERATION.
func (p *peer) replay(req *wire.CreateRequest) (*wire.CreateResponse, ntstatus.Status) {
	p.t.Helper()
	m := p.message(wire.CmdCreate, req.Append)
	le.PutUint32(m[16:], wire.FlagReplayOperation)
	p.send(m)
	r := p.answer()
	if r.status() != ntstatus.Success {
		return nil, r.status()
	}
	resp, err := wire.ParseCreateResponse(r.msg)
	if err != nil {
		p.t.Fatal(err)
	}
	return &resp, ntstatus.Success
}

func (s *testServer) persistent() int {
	s.durables.mu.Lock()
	defer s.durables.mu.Unlock()
	n := len(s.durables.byID)
	for _, e := range s.durables.byGUID {
		if e.persistent {
			n++
		}
	}
	return n
}

// TestPersistentOpen loses the connection of a persistent open and gets it back. [MS-SMB2] 3.3.5.9.10, 3.3.5.9.12, 3.3.7.1
func TestPersistentOpen(t *testing.T) {
	s := caServer(t)
	p := s.client(t, 1, 0, "me", "ca")
	resp, st := p.tryOpen(with(openReq("a"), dh2q(7, 5*time.Second, flagPersistent)))
	check(t, "open", st, ntstatus.Success)
	if c := resp.Contexts; len(c) != 1 || c[0].Name != wire.CreateDurableRequest2 || le.Uint32(c[0].Data) != 5000 || le.Uint32(c[0].Data[4:]) != flagPersistent {
		t.Fatalf("contexts %+v", c)
	}
	id := resp.FileID
	take := lockReq(id, wire.LockExclusive|wire.LockFailImmediately)
	check(t, "WRITE", p.write(id, 0, "kept"), ntstatus.Success)
	check(t, "LOCK", p.ask(wire.CmdLock, take).status(), ntstatus.Success)
	back := func() *wire.CreateRequest { return with(openReq("A"), dh2c(id, 7, flagPersistent)) }
	_, st = p.tryOpen(back())
	check(t, "reconnect of an open that is not lost", st, ntstatus.ObjectNameNotFound)
	s.cut(t, p)

	other := s.client(t, 2, 0, "me", "ca")
	_, st = other.tryOpen(openReq("a"))
	check(t, "open by another while the client is away", st, ntstatus.FileNotAvailable)
	_, st = other.tryOpen(back())
	check(t, "reconnect by another client", st, ntstatus.ObjectNameNotFound)
	_, st = s.client(t, 1, 0, "you", "ca").tryOpen(back())
	check(t, "reconnect by another user", st, ntstatus.AccessDenied)
	_, st = s.client(t, 1, 0, "me", "ca2").tryOpen(back())
	check(t, "reconnect through another share", st, ntstatus.ObjectNameNotFound)
	q := s.client(t, 1, 0, "me", "ca")
	for what, c := range map[string]struct {
		req  *wire.CreateRequest
		want ntstatus.Status
	}{
		"other name":        {with(openReq("b"), dh2c(id, 7, flagPersistent)), ntstatus.InvalidParameter},
		"other CreateGuid":  {with(openReq("a"), dh2c(id, 8, flagPersistent)), ntstatus.ObjectNameNotFound},
		"other FileId":      {with(openReq("a"), dh2c(wire.FileID{Persistent: id.Persistent + 99}, 8, flagPersistent)), ntstatus.ObjectNameNotFound},
		"not as persistent": {with(openReq("a"), dh2c(id, 7, 0)), ntstatus.ObjectNameNotFound},
		"with DH2Q":         {with(back(), dh2q(7, 0, flagPersistent)), ntstatus.InvalidParameter},
		"with DHnC":         {with(back(), wire.CreateContext{Name: wire.CreateDurableConnect, Data: make([]byte, 16)}), ntstatus.InvalidParameter},
		"with a lease":      {with(back(), wire.CreateContext{Name: wire.CreateLease, Data: make([]byte, 52)}), ntstatus.ObjectNameNotFound},
		"short context":     {with(openReq("a"), wire.CreateContext{Name: wire.CreateDurableConnect2, Data: make([]byte, 35)}), ntstatus.InvalidParameter},
	} {
		_, st := q.tryOpen(c.req)
		check(t, "reconnect: "+what, st, c.want)
	}
	resp, st = q.tryOpen(back())
	check(t, "reconnect", st, ntstatus.Success)
	if resp.FileID.Persistent != id.Persistent || resp.Action != wire.ActionOpened || resp.EndOfFile != 4 {
		t.Errorf("reply %+v", resp)
	}
	if got, st := q.read(resp.FileID, 0, 10); st != ntstatus.Success || got != "kept" {
		t.Errorf("READ: %q, %v", got, st)
	}
	x := other.open(openReq("a"))
	check(t, "LOCK by another", other.ask(wire.CmdLock, lockReq(x, wire.LockExclusive|wire.LockFailImmediately)).status(), ntstatus.LockNotGranted)

	// The session goes again: in the place of a new one, before the server knows of the loss, and by LOGOFF.
	n := s.client(t, 1, q.sid, "me", "ca")
	_, st = n.tryOpen(back())
	check(t, "reconnect with the previous session", st, ntstatus.Success)
	check(t, "LOGOFF", n.ask(wire.CmdLogoff, wire.AppendEmptyResponse).status(), ntstatus.Success)
	n = s.client(t, 1, 0, "me", "ca")
	resp, st = n.tryOpen(back())
	check(t, "reconnect after LOGOFF", st, ntstatus.Success)
	check(t, "CLOSE", n.close(resp.FileID), ntstatus.Success)
	_, st = n.tryOpen(back())
	check(t, "reconnect after CLOSE", st, ntstatus.ObjectNameNotFound)
	check(t, "LOCK by another after CLOSE", other.ask(wire.CmdLock, lockReq(x, wire.LockExclusive|wire.LockFailImmediately)).status(), ntstatus.Success)
}

// TestNotPersistent asks for what is not granted.
func TestNotPersistent(t *testing.T) {
	s := caServer(t)
	for what, c := range map[string]struct {
		share string
		caps  uint32
		req   *wire.CreateRequest
	}{
		"share that is not continuously available": {"disks", wire.CapPersistentHandles, with(openReq("a"), dh2q(1, 0, flagPersistent))},
		"client that cannot":                       {"ca", 0, with(openReq("a"), dh2q(1, 0, flagPersistent))},
		"durable only":                             {"ca", wire.CapPersistentHandles, with(openReq("a"), dh2q(1, 0, 0))},
		"directory": {"ca", wire.CapPersistentHandles, with(&wire.CreateRequest{Impersonation: 2, DesiredAccess: accessAll, ShareAccess: 7,
			Disposition: wire.FileOpenIf, Options: wire.OptDirectoryFile, Name: "d"}, dh2q(1, 0, flagPersistent))},
	} {
		p := s.dialPeer(t)
		p.caps = c.caps
		p.negotiate(wire.Dialect311)
		check(t, "logon", p.logon("me", "secret"), ntstatus.Success)
		p.tree(c.share)
		resp, st := p.tryOpen(c.req)
		check(t, what, st, ntstatus.Success)
		if what != "directory" && len(resp.Contexts) != 0 {
			t.Errorf("%s: contexts %+v", what, resp.Contexts)
		}
		if s.persistent() != 0 {
			t.Errorf("%s: it is persistent", what)
		}
		check(t, "CLOSE", p.close(resp.FileID), ntstatus.Success)
	}
	// The tree's end is the open's.
	p := s.client(t, 1, 0, "me", "ca")
	p.open(with(openReq("a"), dh2q(1, 0, flagPersistent)))
	check(t, "TREE_DISCONNECT", p.ask(wire.CmdTreeDisconnect, wire.AppendEmptyResponse).status(), ntstatus.Success)
	if s.persistent() != 0 {
		t.Error("a persistent open has survived TREE_DISCONNECT")
	}
}

// TestPersistentTimeout lets the time of an open run out.
func TestPersistentTimeout(t *testing.T) {
	s := caServer(t)
	p := s.client(t, 1, 0, "me", "ca")
	id := p.open(with(openReq("a"), dh2q(1, time.Hour, flagPersistent)))
	s.cut(t, p)
	s.durables.mu.Lock()
	e := s.durables.byID[id.Persistent]
	s.durables.mu.Unlock()
	if e.timeout != maxDurableTimeout || e.timer == nil {
		t.Errorf("time %v", e.timeout)
	}
	s.expire(e, e.generation-1) // of an earlier loss
	if n := s.opens.Load(); n != 1 {
		t.Errorf("%d opens", n)
	}
	s.expire(e, e.generation)
	if n := s.opens.Load(); n != 0 {
		t.Errorf("%d opens after their time", n)
	}
	_, st := s.client(t, 1, 0, "me", "ca").tryOpen(with(openReq("a"), dh2c(id, 1, flagPersistent)))
	check(t, "reconnect", st, ntstatus.ObjectNameNotFound)
}

// TestReplayedCreate sends CREATEs again. [MS-SMB2] 3.3.5.9, 3.3.5.9.10
func TestReplayedCreate(t *testing.T) {
	s := caServer(t)
	p := s.client(t, 1, 0, "me", "ca")
	req := func() *wire.CreateRequest {
		r := with(openReq("a"), dh2q(1, 0, flagPersistent))
		r.Disposition = wire.FileCreate
		return r
	}
	resp, st := p.replay(req())
	check(t, "CREATE that has not come before", st, ntstatus.Success)
	_, st = p.tryOpen(req())
	check(t, "the same CreateGuid", st, ntstatus.DuplicateObjectID)
	again, st := p.replay(req())
	check(t, "CREATE again", st, ntstatus.Success)
	if again.FileID != resp.FileID || again.Action != wire.ActionCreated || len(again.Contexts) != 1 {
		t.Errorf("replies %+v and %+v", resp, again)
	}
	if n := s.opens.Load(); n != 1 {
		t.Errorf("%d opens", n)
	}
	q := s.client(t, 1, 0, "me", "ca")
	_, st = q.replay(req())
	check(t, "CREATE again in another session", st, ntstatus.DuplicateObjectID)
	_, st = s.client(t, 1, 0, "you", "ca").replay(req())
	check(t, "CREATE again by another user", st, ntstatus.AccessDenied)
	s.cut(t, p)
	other := req()
	other.ShareAccess = 1
	_, st = q.replay(other)
	check(t, "CREATE again, but not the same", st, ntstatus.ContextMismatch)
	again, st = q.replay(req())
	check(t, "CREATE again after the connection was lost", st, ntstatus.Success)
	check(t, "WRITE", q.write(again.FileID, 0, "x"), ntstatus.Success)
	_, st = q.replay(req())
	check(t, "CREATE again after the open was used", st, ntstatus.FileNotAvailable)
	bad := req()
	bad.Contexts[0].Data = bad.Contexts[0].Data[:31]
	_, st = q.tryOpen(bad)
	check(t, "short context", st, ntstatus.InvalidParameter)
	// A CREATE that fails leaves its CreateGuid free.
	taken := with(openReq("a"), dh2q(2, 0, flagPersistent))
	taken.Disposition = wire.FileCreate
	_, st = q.tryOpen(taken)
	check(t, "CREATE of a file that exists", st, ntstatus.ObjectNameCollision)
	taken.Disposition = wire.FileOpen
	_, st = q.tryOpen(taken)
	check(t, "the same CreateGuid after a failure", st, ntstatus.Success)
}

// TestAppInstance takes opens over from another machine. [MS-SMB2] 3.3.5.9.13
func TestAppInstance(t *testing.T) {
	s := caServer(t)
	exclusive := func(guid byte, c []wire.CreateContext) *wire.CreateRequest {
		r := with(with(openReq("a"), dh2q(guid, 0, flagPersistent)), c...)
		r.ShareAccess = 0
		return r
	}
	p := s.client(t, 1, 0, "me", "ca")
	id := p.open(exclusive(1, appContexts(9, 1, 5)))
	q := s.client(t, 2, 0, "me", "ca")
	_, st := q.tryOpen(exclusive(2, nil))
	check(t, "without an application", st, ntstatus.SharingViolation)
	_, st = q.tryOpen(exclusive(2, appContexts(8, 2, 0)))
	check(t, "another application", st, ntstatus.SharingViolation)
	_, st = q.tryOpen(exclusive(2, appContexts(9, 1, 5)))
	check(t, "the same version", st, ntstatus.FileForcedClosed)
	_, st = q.tryOpen(exclusive(2, appContexts(9, 0, 9)))
	check(t, "an older version", st, ntstatus.FileForcedClosed)
	_, st = q.tryOpen(exclusive(2, appContexts(9, 0, 0)[:1]))
	check(t, "no version", st, ntstatus.FileForcedClosed)
	check(t, "WRITE before the take-over", p.write(id, 0, "x"), ntstatus.Success)
	id2, st := q.tryOpen(exclusive(2, appContexts(9, 1, 6)))
	check(t, "a newer version", st, ntstatus.Success)
	check(t, "WRITE after the take-over", p.write(id, 0, "x"), ntstatus.FileClosed)
	check(t, "WRITE by the new one", q.write(id2.FileID, 0, "y"), ntstatus.Success)
	// The one that goes on elsewhere may have lost its connection.
	s.cut(t, q)
	_, st = p.tryOpen(exclusive(3, appContexts(9, 2, 0)))
	check(t, "take-over of a lost open", st, ntstatus.Success)
	_, st = s.client(t, 2, 0, "me", "ca").tryOpen(with(openReq("a"), dh2c(id2.FileID, 2, flagPersistent)))
	check(t, "reconnect after the take-over", st, ntstatus.ObjectNameNotFound)
}

// TestPersistentDisk keeps a shared disk open over the loss of the connection; others may open it meanwhile.
func TestPersistentDisk(t *testing.T) {
	s := caServer(t)
	s.write("d.vhdx", "")
	const name = "d.vhdx:SharedVirtualDisk"
	p := s.client(t, 1, 0, "me", "ca")
	resp, st := p.tryOpen(with(diskReq(name, make([]byte, 168)), dh2q(1, 0, flagPersistent)))
	check(t, "open", st, ntstatus.Success)
	if len(resp.Contexts) != 2 || resp.Contexts[0].Name != wire.CreateDurableRequest2 || resp.Contexts[1].Name != wire.CreateSVHDX {
		t.Errorf("contexts %+v", resp.Contexts)
	}
	check(t, "WRITE", p.write(resp.FileID, 0, "kept"), ntstatus.Success)
	s.cut(t, p)
	q := s.client(t, 2, 0, "me", "ca")
	q.open(diskReq(name, make([]byte, 168)))
	n := s.client(t, 1, p.sid, "me", "ca")
	again, st := n.tryOpen(with(&wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x20083, ShareAccess: 7, Disposition: wire.FileOpen, Name: name}, dh2c(resp.FileID, 1, flagPersistent)))
	check(t, "reconnect without the RSVD context", st, ntstatus.Success)
	if again.EndOfFile != 1<<20 || again.FileID.Persistent != resp.FileID.Persistent {
		t.Errorf("reply %+v", again)
	}
	if got, st := n.read(again.FileID, 0, 4); st != ntstatus.Success || got != "kept" {
		t.Errorf("READ: %q, %v", got, st)
	}
}
