package server

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"vdbridge/smb/crypt"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/transport"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

// ramDisk is a DiskService whose disks are memory. The lock is for the race detector: that a request was sent after a reply had come is an order
// that it does not see through a socket.
type ramDisk struct {
	mu sync.RWMutex
	b  []byte
}

func (d *ramDisk) OpenDisk(_ context.Context, _ string, req []byte, _, _ uint32) (DiskOpen, []byte, error) {
	return d, req, nil
}

func (d *ramDisk) QuerySupport(_ string, open DiskOpen) (support, state uint32) {
	if open != nil {
		return 1, 3
	}
	return 1, 0
}

func (d *ramDisk) Read(_ context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > int64(len(d.b)) {
		return ntstatus.SVHDXErrorStored | 1
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	copy(p, d.b[off:])
	return nil
}

func (d *ramDisk) Write(_ context.Context, p []byte, off int64, _ bool) error {
	if off < 0 || off+int64(len(p)) > int64(len(d.b)) {
		return ntstatus.SVHDXReservationConflict
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.b[off:], p)
	return nil
}

func (d *ramDisk) Flush(context.Context) error { return nil }
func (d *ramDisk) Size() int64                 { return int64(len(d.b)) }
func (d *ramDisk) Close() error                { return nil }

// Tunnel reads 4 KiB at the offset in the input's second half.
func (d *ramDisk) Tunnel(_ context.Context, _ uint32, in, out []byte) (int, error) {
	if len(in) < 16 || len(out) < 16+4096 {
		return 0, ntstatus.BufferTooSmall
	}
	copy(out, in[:16])
	d.mu.RLock()
	defer d.mu.RUnlock()
	return 16 + copy(out[16:16+4096], d.b[le.Uint64(in[8:])%uint64(len(d.b)-4096):]), nil
}

// pump sends one request again and again, with a number of them under way, and does not allocate.
type pump struct {
	p      *peer
	msg    []byte
	room   []byte
	seg    [1]transport.Message
	one    [1][]byte
	in     []byte
	signer *crypt.Signer
}

func newPump(p *peer, cmd wire.Command, body func([]byte) []byte) *pump {
	m := p.message(cmd, body)
	p.nextID--
	u := &pump{p: p, signer: p.signer, in: make([]byte, 1<<20)}
	u.room = make([]byte, crypt.SealRoom+len(m), crypt.SealRoom+len(m)+64)
	copy(u.room[crypt.SealRoom:], m)
	u.msg = append([]byte(nil), m...)
	return u
}

func (u *pump) send() {
	m := u.room[crypt.SealRoom:]
	copy(m, u.msg)
	le.PutUint64(m[24:], u.p.nextID)
	u.p.nextID++
	u.one[0] = m
	if u.p.seal {
		if err := u.p.sealer.Seal(u.room); err != nil {
			u.p.t.Fatal(err)
		}
		u.one[0] = u.room
	} else {
		le.PutUint32(m[16:], le.Uint32(m[16:])|wire.FlagSigned)
		u.signer.Sign(m)
	}
	u.seg[0] = u.one[:]
	if err := u.p.tc.WriteMessages(u.seg[:]); err != nil {
		u.p.t.Fatal(err)
	}
}

func (u *pump) receive() {
	n, err := u.p.tc.NextMessage()
	if err != nil {
		u.p.t.Fatal(err)
	}
	b := u.in[:n]
	if err := u.p.tc.ReadFull(b); err != nil {
		u.p.t.Fatal(err)
	}
	if u.p.seal {
		if b, err = u.p.sealer.Open(u.in[:n]); err != nil {
			u.p.t.Fatal(err)
		}
	}
	if st := ntstatus.Status(le.Uint32(b[8:])); st != ntstatus.Success {
		u.p.t.Fatalf("reply %v", st)
	}
}

// speedCases are the requests of the data path.
func speedCases(t testing.TB, s *testServer, p *peer) map[string]*pump {
	if err := os.WriteFile(s.path("f"), make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(s.path("d.vhdx"), nil, 0o666)
	f := p.open(openReq("f"))
	req := openReq("d.vhdx:SharedVirtualDisk")
	req.Disposition, req.DesiredAccess = wire.FileOpen, 0x00020083
	req.Contexts = []wire.CreateContext{{Name: wire.CreateSVHDX, Data: make([]byte, 168)}}
	d := p.open(req)
	read := func(id wire.FileID) func([]byte) []byte {
		return (&wire.ReadRequest{Length: 4096, FileID: id}).Append
	}
	return map[string]*pump{
		"READ file":  newPump(p, wire.CmdRead, read(f)),
		"WRITE file": newPump(p, wire.CmdWrite, writeBody(f, 0, make([]byte, 4096), 0)),
		"READ disk":  newPump(p, wire.CmdRead, read(d)),
		"WRITE disk": newPump(p, wire.CmdWrite, writeBody(d, 0, make([]byte, 4096), 0)),
		"tunnel": newPump(p, wire.CmdIoctl, func(b []byte) []byte {
			q := wire.IoctlRequest{CtlCode: tunnel.FsctlSyncTunnelRequest, FileID: d, InputCount: 64, MaxOutputResponse: 8192, Flags: 1}
			return append(q.Append(b), make([]byte, 64)...)
		}),
	}
}

func diskServer(t testing.TB) *testServer {
	return startServer(t, func(c *Config) { c.Disks = &ramDisk{b: make([]byte, 1<<20)} })
}

func TestWarmPathDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop things")
	}
	for _, seal := range []bool{false, true} {
		s := diskServer(t)
		p := s.connect(t, wire.Dialect311, "disks")
		p.seal = seal
		for name, u := range speedCases(t, s, p) {
			const n = 200
			round := func() {
				for range n {
					u.send()
					u.receive()
				}
				for range 16 {
					u.send()
				}
				for range 16 {
					u.receive()
				}
			}
			round()
			if a := testing.AllocsPerRun(5, round) / (n + 16); a > 0.1 {
				t.Errorf("%s, sealed %v: %.2f allocations a request", name, seal, a)
			}
		}
	}
}

func BenchmarkServer(b *testing.B) {
	for _, mode := range []string{"signed", "sealed"} {
		s := diskServer(b)
		p := s.connect(b, wire.Dialect311, "disks")
		p.tc.SetReadDeadline(time.Time{})
		p.seal = mode == "sealed"
		for name, u := range speedCases(b, s, p) {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/QD%d", name, mode, depth), func(b *testing.B) {
					b.SetBytes(4096)
					sent, got := 0, 0
					for got < b.N {
						for sent < b.N && sent-got < depth {
							u.send()
							sent++
						}
						u.receive()
						got++
					}
				})
			}
		}
	}
}
