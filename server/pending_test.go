package server

import (
	"strings"
	"testing"
	"time"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// interim receives one reply, which must be an interim one, and returns its AsyncId.
func (p *peer) interim() uint64 {
	p.t.Helper()
	r := p.receive()[0]
	if r.status() != ntstatus.Pending || r.hdr.Flags&wire.FlagAsync == 0 || r.hdr.AsyncID == 0 {
		p.t.Fatalf("%v, flags %#x, AsyncId %d: no interim reply", r.status(), r.hdr.Flags, r.hdr.AsyncID)
	}
	return r.hdr.AsyncID
}

// final receives the final reply to an asynchronous request.
func (p *peer) final(asyncID uint64) *reply {
	p.t.Helper()
	r := p.receive()[0]
	if r.hdr.AsyncID != asyncID || r.hdr.Flags&wire.FlagAsync == 0 || r.hdr.Credits != 0 {
		p.t.Fatalf("%v, AsyncId %d, credits %d: not the final reply of %d", r.status(), r.hdr.AsyncID, r.hdr.Credits, asyncID)
	}
	return r
}

// cancel sends CANCEL, which has no reply.
func (p *peer) cancel(asyncID, messageID uint64) {
	p.t.Helper()
	m := p.message(wire.CmdCancel, wire.AppendEmptyRequest)
	p.nextID--
	le.PutUint64(m[24:], messageID)
	if asyncID != 0 {
		le.PutUint32(m[16:], wire.FlagAsync)
		le.PutUint64(m[32:], asyncID)
	}
	p.send(m)
}

func notifyReq(id wire.FileID) func([]byte) []byte {
	return (&wire.ChangeNotifyRequest{Flags: watchTree, OutputBufferLength: 4096, FileID: id, CompletionFilter: 0xFFF}).Append
}

func lockReq(id wire.FileID, flags uint32) func([]byte) []byte {
	return (&wire.LockRequest{FileID: id, Locks: []wire.LockElement{{Offset: 10, Length: 5, Flags: flags}}}).Append
}

func TestPending(t *testing.T) {
	for _, seal := range []bool{false, true} {
		s := startServer(t, nil)
		p, q := s.connect(t, wire.Dialect311, "disks"), s.connect(t, wire.Dialect302, "disks")
		p.seal = seal
		req := openReq("")
		req.Options, req.DesiredAccess = wire.OptDirectoryFile, wire.AccessReadData
		dir := p.open(req)

		// Cancelled by either identifier.
		for _, byMessage := range []bool{false, true} {
			p.send(p.message(wire.CmdChangeNotify, notifyReq(dir)))
			id := p.interim()
			if byMessage {
				p.cancel(0, p.nextID-1)
			} else {
				p.cancel(id, 0)
			}
			check(t, "cancelled CHANGE_NOTIFY", p.final(id).status(), ntstatus.Cancelled)
		}
		p.cancel(12345, 0) // of nothing

		// Completed by another client.
		p.send(p.message(wire.CmdChangeNotify, notifyReq(dir)))
		id := p.interim()
		file := q.open(openReq("new"))
		r := p.final(id)
		check(t, "CHANGE_NOTIFY", r.status(), ntstatus.Success)
		out, err := wire.ParseOutputResponse(r.msg)
		if err != nil || len(out.Buffer) < 18 || le.Uint32(out.Buffer[4:]) != fscc.ActionAdded {
			t.Fatalf("event % x, %v", out.Buffer, err)
		}
		if name, _ := wire.DecodeUTF16(out.Buffer[12:18]); name != "new" {
			t.Errorf("event for %q", name)
		}

		// Ended by CLOSE, even when it comes at once.
		p.send(p.message(wire.CmdChangeNotify, notifyReq(dir)))
		p.send(p.message(wire.CmdClose, (&wire.CloseRequest{FileID: dir}).Append))
		// Where the reply to CLOSE comes among the others is nobody's promise; the interim reply comes before the final one.
		id = 0
		for closed, cleaned := false, false; !closed || !cleaned; {
			for _, r := range p.receive() {
				switch {
				case r.status() == ntstatus.Pending:
					id = r.hdr.AsyncID
				case r.hdr.Flags&wire.FlagAsync != 0:
					if id == 0 || r.hdr.AsyncID != id || r.status() != ntstatus.NotifyCleanup {
						t.Fatalf("CHANGE_NOTIFY of a closed directory: %v, AsyncId %d after the interim reply of %d", r.status(), r.hdr.AsyncID, id)
					}
					cleaned = true
				default:
					check(t, "CLOSE", r.status(), ntstatus.Success)
					closed = true
				}
			}
		}

		// A lock that waits.
		mine := p.open(openReq("new"))
		check(t, "LOCK", q.ask(wire.CmdLock, lockReq(file, wire.LockExclusive)).status(), ntstatus.Success)
		check(t, "LOCK at once", p.ask(wire.CmdLock, lockReq(mine, wire.LockShared|wire.LockFailImmediately)).status(), ntstatus.LockNotGranted)
		check(t, "WRITE into the lock", p.write(mine, 8, strings.Repeat("x", 3)), ntstatus.FileLockConflict)
		check(t, "WRITE beside the lock", p.write(mine, 15, "x"), ntstatus.Success)
		p.send(p.message(wire.CmdLock, lockReq(mine, wire.LockExclusive)))
		id = p.interim()
		check(t, "UNLOCK", q.ask(wire.CmdLock, lockReq(file, wire.LockUnlock)).status(), ntstatus.Success)
		check(t, "LOCK that has waited", p.final(id).status(), ntstatus.Success)
		check(t, "LOCK by the other", q.ask(wire.CmdLock, lockReq(file, wire.LockShared|wire.LockFailImmediately)).status(), ntstatus.LockNotGranted)
	}
}

func TestReauthentication(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	id := p.open(openReq("a"))
	s.mu.Lock()
	for _, sn := range s.sessions {
		sn.expire()
	}
	s.mu.Unlock()
	check(t, "WRITE after expiry", p.write(id, 0, "x"), ntstatus.NetworkSessionExpired)
	p.reauth = true
	check(t, "logon again", p.logon("me", "secret"), ntstatus.Success)
	check(t, "WRITE after logon", p.write(id, 0, "x"), ntstatus.Success)
	check(t, "logon as somebody else", p.logon("you", "secret"), ntstatus.AccessDenied)
	check(t, "WRITE after that", p.write(id, 0, "x"), ntstatus.UserSessionDeleted)
}

func TestPreviousSession(t *testing.T) {
	s := startServer(t, nil)
	p := s.connect(t, wire.Dialect311, "disks")
	req := openReq("a")
	req.ShareAccess = 0
	p.open(req)
	q := s.dialPeer(t)
	q.negotiate(wire.Dialect311)
	q.previous = p.sid
	check(t, "logon", q.logon("me", "secret"), ntstatus.Success)
	q.tree("disks")
	q.open(req) // the old session's open is gone
	check(t, "old session", p.ask(wire.CmdTreeConnect, (&wire.TreeConnectRequest{Path: `\\x\disks`}).Append).status(), ntstatus.UserSessionDeleted)
}

// TestCompound has the whole life of a file in one message, and failures in the middle.
func TestCompound(t *testing.T) {
	s := startServer(t, nil)
	for _, seal := range []bool{false, true} {
		p := s.connect(t, wire.Dialect311, "disks")
		p.seal = seal
		related := func(cmd wire.Command, body func([]byte) []byte) []byte {
			m := p.message(cmd, body)
			le.PutUint32(m[16:], wire.FlagRelated)
			return m
		}
		any := wire.RelatedFileID
		ask := func(name string) []*reply {
			req := openReq(name)
			req.Disposition = wire.FileOpenIf
			p.send(p.message(wire.CmdCreate, req.Append), related(wire.CmdWrite, writeBody(any, 0, []byte("abc"), 0)),
				related(wire.CmdRead, (&wire.ReadRequest{Length: 10, FileID: any}).Append), related(wire.CmdClose, (&wire.CloseRequest{FileID: any}).Append))
			var all []*reply
			for len(all) < 4 {
				all = append(all, p.receive()...)
			}
			return all
		}
		for i, r := range ask("x") {
			check(t, r.hdr.Command.String(), r.status(), ntstatus.Success)
			if (r.hdr.Flags&wire.FlagRelated != 0) != (i > 0) {
				t.Errorf("reply %d has flags %#x", i, r.hdr.Flags)
			}
		}
		for _, r := range ask(`no\x`) {
			check(t, r.hdr.Command.String(), r.status(), ntstatus.ObjectPathNotFound)
		}
		// Unrelated requests stand for themselves.
		p.send(p.message(wire.CmdClose, (&wire.CloseRequest{FileID: any}).Append), p.message(wire.CmdEcho, wire.AppendEmptyRequest))
		rs := p.receive()
		check(t, "CLOSE", rs[0].status(), ntstatus.FileClosed)
		check(t, "ECHO", rs[1].status(), ntstatus.Success)
	}
}

func TestLogonTimeout(t *testing.T) {
	s := startServer(t, func(c *Config) { c.Limits.LogonTimeout = 50 * time.Millisecond })
	p := s.dialPeer(t)
	p.negotiate(wire.Dialect311)
	p.gone()
}

// TestBackpressure has far more requests under way than the server may hold in memory.
func TestBackpressure(t *testing.T) {
	s := startServer(t, func(c *Config) {
		c.Limits.InflightConnection, c.Limits.InflightTotal = 256<<10, 384<<10
	})
	s.write("f", strings.Repeat("x", 64<<10))
	for _, seal := range []bool{false, true} {
		p, q := s.connect(t, wire.Dialect311, "disks"), s.connect(t, wire.Dialect311, "disks")
		p.seal, q.seal = seal, seal
		id, id2 := p.open(openReq("f")), q.open(openReq("f"))
		const n = 60
		for range n {
			p.send(p.message(wire.CmdRead, (&wire.ReadRequest{Length: 64 << 10, FileID: id}).Append))
			q.send(q.message(wire.CmdRead, (&wire.ReadRequest{Length: 64 << 10, FileID: id2}).Append))
		}
		for range n {
			check(t, "READ", p.answer().status(), ntstatus.Success)
			check(t, "READ", q.answer().status(), ntstatus.Success)
		}
		p.tc.Close()
		q.tc.Close()
	}
}
