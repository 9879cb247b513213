package server

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// stuckDisk is a shared disk that lets one write, or one opening, wait.
type stuckDisk struct {
	*slowDisk
	landed  atomic.Bool
	opening chan struct{} // not nil: OpenDisk waits for it to be closed
	begun   chan struct{}
}

func newStuckDisk() *stuckDisk {
	return &stuckDisk{slowDisk: &slowDisk{ramDisk: &ramDisk{b: make([]byte, 1<<20)}, begun: make(chan struct{}), end: make(chan struct{})}}
}

func (d *stuckDisk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	err := d.slowDisk.Write(context.WithoutCancel(ctx), p, off, fua) // a system call cannot be given up
	if p[0] == 's' {
		d.landed.Store(true)
	}
	return err
}

func (d *stuckDisk) OpenDisk(ctx context.Context, path string, req []byte, a, b uint32) (DiskOpen, []byte, error) {
	if d.opening != nil {
		close(d.begun)
		<-d.opening
		d.landed.Store(true)
		d.opening = nil
	}
	return d, req, nil
}

// until waits for something that has no event.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); runtime.Gosched() {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("%s does not happen", what)
		}
	}
}

func (s *testServer) sessionOf(p *peer) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[p.sid]
}

// TestOldRequestsEndFirst loses clients whose last request is still being carried out by a disk that hangs. What they do next is not answered before
// that has ended, so that nothing old lands on what they do then. [MS-SMB2] 3.3.5.5.3, 3.3.5.9.12
func TestOldRequestsEndFirst(t *testing.T) {
	start := func(t *testing.T, d *stuckDisk) (*testServer, *peer) {
		s := startServer(t, func(c *Config) {
			c.Shares = append(c.Shares, Share{Name: "ca", Dir: c.Shares[0].Dir, CA: true})
			c.Disks = d
		})
		s.write("d.vhdx", "")
		return s, s.client(t, 1, 0, "me", "ca")
	}
	data := make([]byte, 512)
	data[0] = 's'
	open := func() *wire.CreateRequest {
		return with(diskReq("d.vhdx:SharedVirtualDisk", make([]byte, 168)), dh2q(1, 0, flagPersistent))
	}
	back := func(id wire.FileID) *wire.CreateRequest {
		return with(&wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x20083, ShareAccess: 7, Disposition: wire.FileOpen, Name: "d.vhdx:SharedVirtualDisk"}, dh2c(id, 1, flagPersistent))
	}
	// others gives a server that answers too early the time to do so.
	others := func(s *testServer) {
		q := s.connect(t, wire.Dialect311, "disks")
		for range 20 {
			check(t, "ECHO", q.ask(wire.CmdEcho, wire.AppendEmptyRequest).status(), ntstatus.Success)
		}
	}
	t.Run("WRITE and SESSION_SETUP", func(t *testing.T) {
		d := newStuckDisk()
		s, p := start(t, d)
		id := p.open(open())
		old := s.sessionOf(p)
		p.send(p.message(wire.CmdWrite, writeBody(id, 0, data, 0)))
		<-d.slowDisk.begun
		done := make(chan bool)
		go func() {
			q := s.client(t, 1, p.sid, "me", "ca")
			done <- d.landed.Load()
			resp, st := q.tryOpen(back(id))
			check(t, "reconnect", st, ntstatus.Success)
			check(t, "WRITE", q.write(resp.FileID, 0, "new"), ntstatus.Success)
			done <- true
		}()
		until(t, "the end of the old session", func() bool { return old.state.Load() == sessionGone })
		others(s)
		close(d.end)
		if !<-done {
			t.Error("SESSION_SETUP was answered while a WRITE of the previous session was being carried out")
		}
		<-done
		got := make([]byte, 3)
		if err := d.Read(t.Context(), got, 0); err != nil || string(got) != "new" {
			t.Errorf("the disk has %q, %v", got, err)
		}
	})
	t.Run("WRITE and reconnect", func(t *testing.T) {
		d := newStuckDisk()
		s, p := start(t, d)
		id := p.open(open())
		p.send(p.message(wire.CmdWrite, writeBody(id, 0, data, 0)))
		<-d.slowDisk.begun
		p.tc.Close()
		q := s.client(t, 1, 0, "me", "ca")
		for range 10 {
			_, st := q.tryOpen(back(id))
			check(t, "reconnect while a WRITE is being carried out", st, ntstatus.ObjectNameNotFound)
		}
		_, st := q.replay(open())
		check(t, "CREATE again while a WRITE is being carried out", st, ntstatus.FileNotAvailable)
		others(s)
		if d.landed.Load() {
			t.Fatal("the test's disk does not hang")
		}
		close(d.end)
		until(t, "reconnect", func() bool {
			_, st := q.tryOpen(back(id))
			if st == ntstatus.Success && !d.landed.Load() {
				t.Fatal("the open is given back while a WRITE is being carried out")
			}
			return st == ntstatus.Success
		})
	})
	t.Run("CREATE and SESSION_SETUP", func(t *testing.T) {
		d := newStuckDisk()
		d.opening, d.begun = make(chan struct{}), make(chan struct{})
		end := d.opening
		s, p := start(t, d)
		old := s.sessionOf(p)
		p.send(p.message(wire.CmdCreate, open().Append))
		<-d.begun
		done := make(chan bool)
		go func() {
			q := s.client(t, 1, p.sid, "me", "ca")
			done <- d.landed.Load()
			// It was never answered, and is not there: it is made anew.
			_, st := q.replay(open())
			check(t, "CREATE again", st, ntstatus.Success)
			done <- true
		}()
		until(t, "the end of the old session", func() bool { return old.state.Load() == sessionGone })
		others(s)
		close(end)
		if !<-done {
			t.Error("SESSION_SETUP was answered while a CREATE of the previous session was being carried out")
		}
		<-done
	})
}
