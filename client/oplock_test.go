package client

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// granting is a scripted server that grants what is asked for, and breaks it.
type granting struct {
	mu       sync.Mutex
	q        wire.CreateRequest
	durable  bool
	level    uint8
	early    bool // a break comes before the reply to CREATE
	acks     []string
	refuse   bool // acknowledgments
	leaseKey wire.GUID
	tweak    func(*wire.CreateResponse)
}

const theFile = 99

func (g *granting) handle(v *several, at int, q *query) bool {
	p := v.peers[at]
	g.mu.Lock()
	defer g.mu.Unlock()
	switch q.Command {
	case wire.CmdCreate:
		r, err := wire.ParseCreateRequest(q.msg)
		if err != nil {
			p.t.Error(err)
			return false
		}
		g.q = *r
		if g.level == 0 {
			return false
		}
		a := wire.CreateResponse{Action: 1, OplockLevel: g.level, FileID: wire.FileID{Persistent: theFile, Volatile: theFile}}
		for _, c := range r.Contexts {
			switch c.Name {
			case wire.CreateLease:
				g.leaseKey = wire.GUID(c.Data[:16])
				l, err := wire.ParseLease(c.Data)
				if err != nil {
					p.t.Error(err)
				}
				l.Epoch = 10
				a.Contexts = append(a.Contexts, wire.CreateContext{Name: wire.CreateLease, Data: wire.AppendLease(nil, l)})
			case wire.CreateDurableRequest2:
				if g.durable {
					a.Contexts = append(a.Contexts, wire.CreateContext{Name: c.Name, Data: []byte{0x10, 0x27, 0, 0, 0, 0, 0, 0}})
				}
			}
		}
		if g.tweak != nil {
			g.tweak(&a)
		}
		if g.early {
			g.send(p, g.level, 0, 11, true)
		}
		p.reply(q, ntstatus.Success, bodyOf(a.Append))
	case wire.CmdOplockBreak:
		if wire.IsLeaseBreak(q.msg) {
			a, err := wire.ParseLeaseBreakResponse(q.msg) // which has the form of the acknowledgment
			if err != nil || a.Key != g.leaseKey {
				p.t.Errorf("acknowledgment %+v, %v", a, err)
			}
			g.acks = append(g.acks, fmt.Sprint("lease ", a.State))
		} else {
			a, err := wire.ParseOplockBreakAck(q.msg)
			if err != nil || a.FileID.Volatile != theFile {
				p.t.Errorf("acknowledgment %+v, %v", a, err)
			}
			g.acks = append(g.acks, fmt.Sprint("oplock ", a.OplockLevel))
		}
		if g.refuse {
			p.reply(q, ntstatus.InvalidOplockProtocol, nil)
			return true
		}
		p.reply(q, ntstatus.Success, q.msg[wire.HeaderSize:])
	default:
		return false
	}
	return true
}

// send sends a break: of the lease to a state, or of the oplock to a level.
func (g *granting) send(p *peer, held uint8, to uint32, epoch uint16, ack bool) {
	note := query{Header: wire.Header{Command: wire.CmdOplockBreak, MessageID: noMessageID}}
	if held != wire.OplockLease {
		p.send(p.build(&note, ntstatus.Success, 0, 0, 0, bodyOf(func(b []byte) []byte {
			return wire.AppendOplockBreakResponse(b, wire.OplockBreak{OplockLevel: uint8(to), FileID: wire.FileID{Persistent: theFile, Volatile: theFile}})
		})))
		return
	}
	b := make([]byte, 44)
	b[0], b[2], b[3] = 44, byte(epoch), byte(epoch>>8)
	if ack {
		b[4] = 1
	}
	copy(b[8:], g.leaseKey[:])
	b[24], b[28] = 7, byte(to)
	p.send(p.build(&note, ntstatus.Success, 0, 0, 0, b))
}

// TestDurableRequests looks at what a CREATE asks for. [MS-SMB2] 3.2.4.3.5
func TestDurableRequests(t *testing.T) {
	g := &granting{}
	v := openSeveral(t, 1, Config{}, g.handle)
	names := func() string {
		g.mu.Lock()
		defer g.mu.Unlock()
		s := fmt.Sprintf("%#x", g.q.OplockLevel)
		for _, c := range g.q.Contexts {
			if len(c.Name) == 4 {
				s += " " + c.Name
			} else {
				s += fmt.Sprintf(" %x", c.Name[:2])
			}
		}
		return s
	}
	caps := &v.s.c.neg.serverCaps
	for _, c := range []struct {
		caps  uint32
		share uint32
		o     OpenOptions
		want  string
	}{
		{allCaps, 0, OpenOptions{}, "0x0"},
		{allCaps, 0, OpenOptions{Durable: &DurableRequest{}}, "0xff DH2Q RqLs"},
		{allCaps &^ wire.CapLeasing, 0, OpenOptions{Durable: &DurableRequest{}}, "0x9 DH2Q"},
		{allCaps, 0, OpenOptions{Durable: &DurableRequest{}, Oplock: wire.OplockBatch}, "0x9 DH2Q"},
		{allCaps, 0, OpenOptions{Durable: &DurableRequest{Persistent: true}}, "0xff DH2Q RqLs"},
		{allCaps, wire.ShareCapContinuousAvailability, OpenOptions{Durable: &DurableRequest{Persistent: true}}, "0x0 DH2Q"},
		{allCaps &^ wire.CapPersistentHandles, wire.ShareCapContinuousAvailability, OpenOptions{Durable: &DurableRequest{Persistent: true}}, "0xff DH2Q RqLs"},
		{allCaps, 0, OpenOptions{AppInstance: &AppInstance{}}, "0x0 45bc"},
		{allCaps, 0, OpenOptions{AppInstance: &AppInstance{HasVersion: true}, Contexts: []wire.CreateContext{{Name: "MxAc"}}}, "0x0 MxAc 45bc b982"},
		{allCaps, 0, OpenOptions{Lease: &LeaseRequest{State: 1}}, "0xff RqLs"},
	} {
		*caps, v.f.t.info.Capabilities = c.caps, c.share
		f, err := v.f.t.Open(bg, "a", c.o)
		if err != nil {
			t.Errorf("%+v: %v", c.o, err)
			continue
		}
		if got := names(); got != c.want {
			t.Errorf("%+v asks for %s, want %s", c.o, got, c.want)
		}
		if d := f.Durable(); d.Durable || d.Persistent || (c.o.Durable != nil) != (d.CreateGUID != wire.GUID{}) {
			t.Errorf("%+v: nothing was granted, and it says %+v", c.o, d)
		}
	}
	old := newPeer(t)
	old.dialect = wire.Dialect210
	o := old.open(Config{MinDialect: wire.Dialect210, MaxDialect: wire.Dialect210})
	if _, err := o.t.Open(bg, "a", OpenOptions{Durable: &DurableRequest{}}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("SMB 2.1: %v", err)
	}
}

// TestOplockBreaks has the server take back what it granted. [MS-SMB2] 3.2.5.19
func TestOplockBreaks(t *testing.T) {
	durable := OpenOptions{Durable: &DurableRequest{}}
	batch := durable
	batch.Oplock = wire.OplockBatch
	for what, c := range map[string]struct {
		o       OpenOptions
		level   uint8
		early   bool
		refuse  bool
		to      uint32
		epoch   uint16
		ack     bool
		want    string // the acknowledgment
		durable bool   // still
	}{
		"batch to II":                  {batch, wire.OplockBatch, false, false, 1, 0, false, "[oplock 1]", false},
		"batch to none":                {batch, wire.OplockBatch, false, false, 0, 0, false, "[oplock 0]", false},
		"refused":                      {batch, wire.OplockBatch, false, true, 1, 0, false, "[oplock 1]", false},
		"early":                        {batch, wire.OplockBatch, true, false, 0, 0, false, "[oplock 0]", false},
		"lease to none":                {durable, wire.OplockLease, false, false, 0, 11, true, "[lease 0]", false},
		"lease to RH":                  {durable, wire.OplockLease, false, false, 3, 11, true, "[lease 3]", true},
		"lease without acknowledgment": {durable, wire.OplockLease, false, false, 2, 11, false, "[]", true},
		"lease of an old epoch":        {durable, wire.OplockLease, false, false, 0, 9, true, "[lease 0]", true},
		"early lease":                  {durable, wire.OplockLease, true, false, 0, 11, true, "[lease 0]", false},
	} {
		t.Run(what, func(t *testing.T) {
			g := &granting{}
			v := openSeveral(t, 2, Config{}, g.handle)
			g.mu.Lock()
			g.level, g.durable, g.early, g.refuse = c.level, true, c.early, c.refuse
			g.mu.Unlock()
			f, err := v.f.t.Open(bg, "a", c.o)
			if err != nil {
				t.Fatal(err)
			}
			if !c.early {
				if d := f.Durable(); !d.Durable || d.Timeout != 10*time.Second {
					t.Fatalf("%+v", d)
				}
				g.mu.Lock()
				g.send(v.peers[1], c.level, c.to, c.epoch, c.ack)
				g.mu.Unlock()
			}
			if c.want == "[]" {
				await(t, "the break to be noticed", func() bool {
					v.s.mu.Lock()
					defer v.s.mu.Unlock()
					return f.held.lease.Epoch == c.epoch
				})
			}
			await(t, "acknowledgment", func() bool {
				g.mu.Lock()
				defer g.mu.Unlock()
				return fmt.Sprint(g.acks) == c.want
			})
			await(t, "durability", func() bool { return f.Durable().Durable == c.durable })
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			v.s.mu.Lock()
			defer v.s.mu.Unlock()
			if len(v.s.files) != 0 {
				t.Error("a closed file is still known")
			}
		})
	}
}

// TestBadGrants has the server grant what makes no sense: the file is closed again.
func TestBadGrants(t *testing.T) {
	for what, tweak := range map[string]func(a *wire.CreateResponse){
		"lease of another key": func(a *wire.CreateResponse) { a.Contexts[len(a.Contexts)-1].Data[0] ^= 1 },
		"short lease":          func(a *wire.CreateResponse) { d := &a.Contexts[len(a.Contexts)-1].Data; *d = (*d)[:31] },
		"no lease":             func(a *wire.CreateResponse) { a.Contexts = nil },
		"short durable":        func(a *wire.CreateResponse) { a.Contexts[0].Data = []byte{1} },
	} {
		g := &granting{durable: true, tweak: tweak}
		v := openSeveral(t, 1, Config{}, g.handle)
		g.mu.Lock()
		g.level = wire.OplockLease
		g.mu.Unlock()
		if _, err := v.f.t.Open(bg, "a", OpenOptions{Durable: &DurableRequest{}}); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", what, err)
		}
		v.peers[0].mu.Lock()
		if closed := v.peers[0].closed; len(closed) != 1 || closed[0].Volatile != theFile {
			t.Errorf("%s: closed %v", what, closed)
		}
		v.peers[0].mu.Unlock()
	}
}
