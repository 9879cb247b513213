package server

import (
	"testing"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// TestLocksNotKept has a persistent open take more locks than the database has room for: the request that fails leaves none behind, and fails again when it is
// sent again.
func TestLocksNotKept(t *testing.T) {
	l := newLives(t)
	s := l.start(l.state)
	p := s.client(t, 1, 0, "me", "ca")
	id := p.open(with(openReq("a"), dh2q(1, 0, flagPersistent)))
	other := p.open(openReq("a"))
	const each, far = 4096, 1 << 60 // offsets that are long to write down
	request := func(n uint64) *wire.LockRequest {
		req := &wire.LockRequest{FileID: id, LockSequence: uint32(n+1) << 4}
		for i := range uint64(each) {
			req.Locks = append(req.Locks, wire.LockElement{Offset: far + 4*(n*each+i), Length: 1, Flags: wire.LockExclusive | wire.LockFailImmediately})
		}
		return req
	}
	n := uint64(0)
	st := ntstatus.Success
	for ; ; n++ {
		r := p.ask(wire.CmdLock, request(n).Append)
		if st = r.status(); st != ntstatus.Success {
			break
		}
		if n == maxHeldLocks/each {
			t.Fatal("all locks that a file can have have been kept")
		}
	}
	held := func() int { return len(mustRecord(t, s, id).Locks) }
	check(t, "LOCK beyond the room", st, ntstatus.InsufficientResources)
	check(t, "the same again", p.ask(wire.CmdLock, request(n).Append).status(), ntstatus.InsufficientResources)
	probe := &wire.LockRequest{FileID: other, Locks: []wire.LockElement{{Offset: far + 4*n*each, Length: 1, Flags: wire.LockExclusive | wire.LockFailImmediately}}}
	check(t, "LOCK of what failed", p.ask(wire.CmdLock, probe.Append).status(), ntstatus.Success)
	if got := held(); got != int(n)*each {
		t.Errorf("%d locks in the database, want %d", got, n*each)
	}

	// Of an UNLOCK that fails, what came before the failure is unlocked.
	unlock := &wire.LockRequest{FileID: id, Locks: []wire.LockElement{{Offset: far, Length: 1, Flags: wire.LockUnlock}, {Offset: 1, Length: 1, Flags: wire.LockUnlock}}}
	check(t, "UNLOCK", p.ask(wire.CmdLock, unlock.Append).status(), ntstatus.RangeNotLocked)
	if got := held(); got != int(n)*each-1 {
		t.Errorf("%d locks in the database after UNLOCK, want %d", got, n*each-1)
	}
}

func mustRecord(t *testing.T, s *testServer, id wire.FileID) *openRecord {
	t.Helper()
	r, err := decodeRecord(s.db.Table()[id.Persistent])
	if err != nil {
		t.Fatal(err)
	}
	return r
}
