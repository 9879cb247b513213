package server

import (
	"context"
	"net"
	"strings"
	"testing"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// addChannel opens one more connection for the session of p, and returns what the server says to that.
func (s *testServer) addChannel(t testing.TB, p *peer, d wire.Dialect, change func(*peer)) (*peer, ntstatus.Status) {
	t.Helper()
	q := s.dialPeer(t)
	q.caps, q.guid = wire.CapMultiChannel, p.guid
	q.sid, q.tid, q.signer, q.sealer, q.binding = 0, p.tid, nil, p.sealer, true
	user := "me"
	if change != nil {
		change(q)
		if q.previous == 1 { // a mark for another user
			user, q.previous = "you", 0
		}
	}
	q.negotiate(d)
	q.sid, q.signer = p.sid, p.signer
	if q.noSign {
		q.signer = nil
	}
	return q, q.logon(user, "secret")
}

// TestChannels uses one session on several connections. [MS-SMB2] 3.3.5.5, 3.3.7.1
func TestChannels(t *testing.T) {
	for _, d := range []wire.Dialect{wire.Dialect300, wire.Dialect302, wire.Dialect311} {
		for _, seal := range []bool{false, true} {
			s := startServer(t, nil)
			p := s.dialPeer(t)
			p.caps = wire.CapMultiChannel
			resp, err := wire.ParseNegotiateResponse(p.negotiate(d).msg)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Capabilities&wire.CapMultiChannel == 0 {
				t.Errorf("%v: capabilities %#x without multichannel", d, resp.Capabilities)
			}
			check(t, "logon", p.logon("me", "secret"), ntstatus.Success)
			p.tree("disks")
			id := p.open(openReq("a"))
			q, st := s.addChannel(t, p, d, nil)
			check(t, "binding", st, ntstatus.Success)
			r, st := s.addChannel(t, p, d, nil)
			check(t, "binding once more", st, ntstatus.Success)
			p.seal, q.seal, r.seal = seal, seal, seal
			// Trees and opens belong to the session.
			check(t, "WRITE on the first channel", p.write(id, 0, "one"), ntstatus.Success)
			check(t, "WRITE on the second channel", q.write(id, 3, "two"), ntstatus.Success)
			if got, st := r.read(id, 0, 10); st != ntstatus.Success || got != "onetwo" {
				t.Errorf("%v: READ on the third channel: %q, %v", d, got, st)
			}
			// The first connection goes; the session does not.
			s.cut(t, p)
			check(t, "WRITE after the loss of the first channel", q.write(id, 0, "ONE"), ntstatus.Success)
			other := r.open(openReq("b"))
			check(t, "CLOSE on another channel", q.close(other), ntstatus.Success)
			if _, st = s.addChannel(t, q, d, func(n *peer) { n.sealer = q.sealer }); st != ntstatus.AccessDenied {
				// A channel's key is not the session's.
				t.Errorf("%v: binding signed with a channel's key: %v", d, st)
			}
			check(t, "LOGOFF", q.ask(wire.CmdLogoff, wire.AppendEmptyResponse).status(), ntstatus.Success)
			check(t, "WRITE after LOGOFF on another channel", r.write(id, 0, "x"), ntstatus.UserSessionDeleted)
		}
	}
}

// cut closes the connection of p and waits until the server has dealt with that.
func (s *testServer) cut(t testing.TB, p *peer) {
	t.Helper()
	at := p.tc.LocalAddr().String()
	s.mu.Lock()
	var c *conn
	for x := range s.conns {
		if x.tc.RemoteAddr().String() == at {
			c = x
		}
	}
	s.mu.Unlock()
	if c == nil {
		t.Fatal("the server does not know the connection")
	}
	p.tc.Close()
	<-c.over
}

// TestLastChannel ends the session with the last of its connections.
func TestLastChannel(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	id := p.open(openReq("a"))
	q, st := s.addChannel(t, p, wire.Dialect311, nil)
	check(t, "binding", st, ntstatus.Success)
	check(t, "LOCK", p.ask(wire.CmdLock, lockReq(id, wire.LockExclusive|wire.LockFailImmediately)).status(), ntstatus.Success)
	s.cut(t, p)
	s.cut(t, q)
	x := s.connect(t, wire.Dialect311, "disks")
	check(t, "LOCK after the session has ended", x.ask(wire.CmdLock, lockReq(x.open(openReq("a")), wire.LockExclusive|wire.LockFailImmediately)).status(), ntstatus.Success)
}

// TestBindingRefused is the list of [MS-SMB2] 3.3.5.5, step 4, and of 3.3.5.5.3.
func TestBindingRefused(t *testing.T) {
	s := startServer(t, func(c *Config) { c.MinDialect = wire.Dialect210 })
	p := s.connect(t, wire.Dialect311, "disks")
	id := p.open(openReq("a"))
	for name, c := range map[string]struct {
		d      wire.Dialect
		change func(*peer)
		want   ntstatus.Status
	}{
		"older dialect":     {wire.Dialect302, nil, ntstatus.InvalidParameter},
		"dialect without":   {wire.Dialect210, nil, ntstatus.RequestNotAccepted},
		"not signed":        {wire.Dialect311, func(q *peer) { q.noSign = true }, ntstatus.InvalidParameter},
		"other client":      {wire.Dialect311, func(q *peer) { q.guid = wire.GUID{9} }, ntstatus.UserSessionDeleted},
		"somebody else":     {wire.Dialect311, func(q *peer) { q.previous = 1 }, ntstatus.NotSupported},
		"nothing to refuse": {wire.Dialect311, nil, ntstatus.Success},
	} {
		q, st := s.addChannel(t, p, c.d, c.change)
		check(t, name, st, c.want)
		if c.want != ntstatus.Success && c.d != wire.Dialect210 {
			// Not even its signature counts on that connection.
			q.signer = p.signer
			check(t, name+": WRITE afterwards", q.write(id, 0, "x"), ntstatus.UserSessionDeleted)
		}
		check(t, name+": WRITE on the first channel", p.write(id, 0, "x"), ntstatus.Success)
	}
	q := s.dialPeer(t)
	q.negotiate(wire.Dialect311)
	q.sid, q.signer, q.binding = p.sid+1, p.signer, true
	check(t, "no such session", q.logon("me", "secret"), ntstatus.UserSessionDeleted)
	p.binding = true
	check(t, "the same connection", p.logon("me", "secret"), ntstatus.RequestNotAccepted)
	p.binding = false
	s.mu.Lock()
	for _, sn := range s.sessions {
		sn.expire()
	}
	s.mu.Unlock()
	_, st := s.addChannel(t, p, wire.Dialect311, nil)
	check(t, "expired session", st, ntstatus.NetworkSessionExpired)
}

// TestChannelLimit adds as many connections as a session may have, and one more.
func TestChannelLimit(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	for range maxChannels - 1 {
		_, st := s.addChannel(t, p, wire.Dialect311, nil)
		check(t, "binding", st, ntstatus.Success)
	}
	_, st := s.addChannel(t, p, wire.Dialect311, nil)
	check(t, "binding beyond the limit", st, ntstatus.InsufficientResources)
}

// TestPendingOnAnotherChannel ends an operation that waits on one connection by a CLOSE on another.
func TestPendingOnAnotherChannel(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	dir := openReq("")
	dir.Disposition, dir.Options = wire.FileOpen, wire.OptDirectoryFile
	id := p.open(dir)
	q, st := s.addChannel(t, p, wire.Dialect311, nil)
	check(t, "binding", st, ntstatus.Success)
	q.send(q.message(wire.CmdChangeNotify, notifyReq(id)))
	async := q.interim()
	check(t, "CLOSE", p.close(id), ntstatus.Success)
	check(t, "CHANGE_NOTIFY", q.final(async).status(), ntstatus.NotifyCleanup)
}

// TestLockSequence sends LOCKs again. [MS-SMB2] 3.3.5.14
func TestLockSequence(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	id := p.open(openReq("a"))
	lock := func(flags uint32, index, number uint32) ntstatus.Status {
		return p.ask(wire.CmdLock, (&wire.LockRequest{LockSequence: index<<4 | number, FileID: id,
			Locks: []wire.LockElement{{Offset: 0, Length: 1, Flags: flags}}}).Append).status()
	}
	const take = wire.LockExclusive | wire.LockFailImmediately
	check(t, "LOCK", lock(take, 1, 3), ntstatus.Success)
	check(t, "LOCK again", lock(take, 1, 3), ntstatus.Success)
	check(t, "another LOCK", lock(take, 2, 3), ntstatus.LockNotGranted)
	check(t, "LOCK without a sequence", lock(take, 0, 3), ntstatus.LockNotGranted)
	check(t, "index out of range", lock(take, 65, 3), ntstatus.LockNotGranted)
	check(t, "UNLOCK", lock(wire.LockUnlock, 1, 4), ntstatus.Success)
	check(t, "UNLOCK again", lock(wire.LockUnlock, 1, 4), ntstatus.Success)
	check(t, "UNLOCK that is new", lock(wire.LockUnlock, 1, 5), ntstatus.RangeNotLocked)
	check(t, "UNLOCK that had failed", lock(wire.LockUnlock, 1, 5), ntstatus.RangeNotLocked)
}

// TestNetworkInterfaces asks where more connections can be opened.
func TestNetworkInterfaces(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	out, st := p.ioctl(wire.RelatedFileID, wire.FsctlQueryNetworkInterfaceInfo, nil, 65536)
	check(t, "query", st, ntstatus.Success)
	var found []string
	for b := out; ; {
		if len(b) < interfaceInfoSize {
			t.Fatalf("%d bytes", len(b))
		}
		if le.Uint32(b[4:]) == 0 || le.Uint64(b[16:]) == 0 {
			t.Errorf("index %d, speed %d", le.Uint32(b[4:]), le.Uint64(b[16:]))
		}
		if le.Uint16(b[24:]) == 2 {
			found = append(found, net.IP(b[28:32]).String())
		} else {
			found = append(found, net.IP(b[32:48]).String())
		}
		next := le.Uint32(b)
		if next == 0 {
			break
		}
		b = b[next:]
	}
	// The listener is on this address alone.
	if got := strings.Join(found, " "); got != "127.0.0.1" {
		t.Errorf("addresses %s", got)
	}
	_, st = p.ioctl(wire.RelatedFileID, wire.FsctlQueryNetworkInterfaceInfo, nil, 100)
	check(t, "short buffer", st, ntstatus.BufferTooSmall)

	// A second listener on the same port is one more way to the server; one on another port cannot be said.
	_, port, _ := net.SplitHostPort(s.addr.String())
	for _, addr := range []string{"127.0.0.3:" + port, "127.0.0.4:0"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Serve(context.Background(), l) }()
		t.Cleanup(func() {
			l.Close()
			<-done
		})
		until(t, "listening", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			_, ok := s.listeners[l]
			return ok
		})
	}
	out, st = p.ioctl(wire.RelatedFileID, wire.FsctlQueryNetworkInterfaceInfo, nil, 65536)
	check(t, "query", st, ntstatus.Success)
	if len(out) != 2*interfaceInfoSize || net.IP(out[interfaceInfoSize+28:][:4]).String() != "127.0.0.3" {
		t.Errorf("%d bytes: % x", len(out), out)
	}
}
