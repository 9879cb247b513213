package server

import (
	"context"
	"sync"
	"testing"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// TestChannelSequence goes through the cases of [MS-SMB2] 3.3.5.2.10.
func TestChannelSequence(t *testing.T) {
	type step struct {
		number      uint16
		replay      bool
		leave       bool
		counted, ok bool
	}
	for name, steps := range map[string][]step{
		"same number":      {{5, false, false, true, true}, {5, true, false, true, true}},
		"newer":            {{5, false, false, true, true}, {6, false, false, true, true}, {5, false, false, false, false}},
		"late":             {{4, false, false, false, false}, {4, true, false, false, false}},
		"half around":      {{5 + 0x7FFF, false, false, true, true}},
		"more than half":   {{5 + 0x8000&0xFFFF, false, false, false, false}},
		"replay too early": {{5, false, false, true, true}, {6, true, false, false, false}, {6, false, false, true, true}, {6, true, false, false, false}, {5, false, true, false, false}, {6, true, false, true, true}},
		"replay in time":   {{5, false, false, true, true}, {5, false, true, false, false}, {6, true, false, true, true}, {6, true, true, false, false}},
	} {
		var s channelSequence
		s.set(5)
		for i, e := range steps {
			if e.leave {
				s.leave(e.number)
				continue
			}
			if counted, ok := s.enter(e.number, e.replay); counted != e.counted || ok != e.ok {
				t.Errorf("%s, step %d: %v %v", name, i, counted, ok)
			}
		}
	}
}

// slowDisk lets writes of a certain length wait.
type slowDisk struct {
	*ramDisk
	begun, end chan struct{}
	once       sync.Once
	mu         sync.Mutex
}

func (d *slowDisk) Write(ctx context.Context, p []byte, off int64, fua bool) error {
	if len(p) == 512 && p[0] == 's' {
		d.once.Do(func() {
			close(d.begun)
			<-d.end
		})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ramDisk.Write(ctx, p, off, fua)
}

func (d *slowDisk) Read(ctx context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ramDisk.Read(ctx, p, off)
}

func (d *slowDisk) OpenDisk(_ context.Context, _ string, req []byte, _, _ uint32) (DiskOpen, []byte, error) {
	return d, req, nil
}

// TestReplayedWrite sends a WRITE again on another channel while the first one is still running, and one that is late.
func TestReplayedWrite(t *testing.T) {
	d := &slowDisk{ramDisk: &ramDisk{b: make([]byte, 1<<20)}, begun: make(chan struct{}), end: make(chan struct{})}
	s := startServer(t, func(c *Config) { c.Disks = d })
	s.write("a.vhdx", "")
	p := s.connect(t, wire.Dialect311, "disks")
	id := p.open(diskReq("a.vhdx:SharedVirtualDisk", make([]byte, 168)))
	q, st := s.addChannel(t, p, wire.Dialect311, nil)
	check(t, "binding", st, ntstatus.Success)
	data := make([]byte, 512)
	data[0] = 's'
	write := func(p *peer, number uint32, flags uint32) []byte {
		m := p.message(wire.CmdWrite, writeBody(id, 0, data, 0))
		le.PutUint32(m[8:], number)
		le.PutUint32(m[16:], flags)
		return m
	}
	p.send(write(p, 0, 0))
	<-d.begun
	q.send(write(q, 1, wire.FlagReplayOperation))
	check(t, "WRITE sent again while the first one runs", q.answer().status(), ntstatus.FileNotAvailable)
	if _, st := q.read(id, 0, 512); st != ntstatus.Success {
		t.Errorf("READ with an older number: %v", st)
	}
	close(d.end)
	check(t, "the first WRITE", p.answer().status(), ntstatus.Success)
	q.send(write(q, 1, wire.FlagReplayOperation))
	check(t, "WRITE sent again", q.answer().status(), ntstatus.Success)
	p.send(write(p, 0, 0))
	check(t, "late WRITE", p.answer().status(), ntstatus.FileNotAvailable)
	p.send(write(p, 0, wire.FlagReplayOperation))
	check(t, "late WRITE sent again", p.answer().status(), ntstatus.FileNotAvailable)
}
