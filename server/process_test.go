package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
	"vdbridge/test/lab"
)

var be = binary.BigEndian

// program is `vdbridge serve`, and what a scripted client needs to find it.
type program struct {
	*testServer
	proc *lab.Proc
}

// lives starts servers on one directory.
type lives struct {
	t    *testing.T
	vd   *lab.Program
	dir  string
	args []string
}

func newPrograms(t *testing.T, args ...string) *lives {
	dir := t.TempDir()
	disks := filepath.Join(dir, "disks")
	vd, err := lab.NewProgram(lab.Vdbridge(t), dir)
	if err == nil {
		err = os.Mkdir(disks, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &lives{t, vd, disks, args}
}

func (l *lives) start(addr string, more ...string) (*program, error) {
	proc, at, err := l.vd.Serve(l.t.Context(), l.dir, addr, append(append([]string{"--log-level", "info"}, l.args...), more...)...)
	if err != nil {
		return nil, err
	}
	l.t.Cleanup(proc.Kill)
	a, err := net.ResolveTCPAddr("tcp", at)
	if err != nil {
		return nil, err
	}
	return &program{&testServer{t: l.t, dir: l.dir, addr: a}, proc}, nil
}

func (l *lives) mustStart(addr string, more ...string) *program {
	l.t.Helper()
	p, err := l.start(addr, more...)
	if err != nil {
		l.t.Fatal(err)
	}
	return p
}

// freeAddr is an address on which nobody listens.
func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// client is a scripted client, by number.
func (p *program) client(t testing.TB, number byte, previous uint64) (*peer, wire.GUID) {
	t.Helper()
	c := p.dialPeer(t)
	c.guid, c.caps, c.previous = wire.GUID{number}, wire.CapPersistentHandles|wire.CapMultiChannel, previous
	r := c.negotiate(wire.Dialect311)
	resp, err := wire.ParseNegotiateResponse(r.msg)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Capabilities&wire.CapPersistentHandles == 0 {
		t.Error("the server does not offer persistent opens")
	}
	check(t, "logon", c.logon(lab.User, lab.Password), ntstatus.Success)
	tr := c.tryTree(lab.Share)
	check(t, "TREE_CONNECT", tr.status(), ntstatus.Success)
	c.tid = tr.hdr.TreeID
	tree, err := wire.ParseTreeConnectResponse(tr.msg)
	if err != nil || tree.Capabilities&wire.ShareCapContinuousAvailability == 0 {
		t.Errorf("the share is not continuously available: %+v, %v", tree, err)
	}
	return c, resp.ServerGUID
}

// diskContext is the open context of an initiator.
func diskContext(initiator byte) []byte {
	b := make([]byte, 168)
	le.PutUint32(b, 1)
	b[4], b[8] = 1, initiator
	le.PutUint32(b[28:], 1)
	return b
}

// command runs a CDB through the tunnel and returns the SCSI status and the data.
func (p *peer) command(id wire.FileID, request uint64, cdb []byte, out []byte) (status byte, data []byte) {
	p.t.Helper()
	in := make([]byte, 16+36, 16+36+len(out))
	le.PutUint32(in, uint32(tunnel.OpSCSI))
	le.PutUint64(in[8:], request)
	b := in[16:]
	b[0], b[4], b[5], b[6] = 36, byte(len(cdb)), 20, tunnel.DispositionIn
	le.PutUint32(b[12:], 4000)
	if out != nil {
		b[6] = tunnel.DispositionOut
		le.PutUint32(b[12:], uint32(len(out)))
	}
	copy(b[16:], cdb)
	got, st := p.ioctl(id, tunnel.FsctlSyncTunnelRequest, append(in, out...), 8192)
	if st != ntstatus.Success || len(got) < 52 {
		p.t.Fatalf("tunnel: %v, %d bytes", st, len(got))
	}
	return got[16+3], got[52:]
}

// register is PERSISTENT RESERVE OUT, REGISTER.
func (p *peer) register(id wire.FileID, request, old, key uint64) byte {
	list := make([]byte, 24)
	be.PutUint64(list, old)
	be.PutUint64(list[8:], key)
	st, _ := p.command(id, request, []byte{0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0}, list)
	return st
}

// keys is PERSISTENT RESERVE IN, READ KEYS.
func (p *peer) keys(id wire.FileID) (out []uint64) {
	_, b := p.command(id, 99, []byte{0x5E, 0, 0, 0, 0, 0, 0, 15, 160, 0}, nil)
	for b = b[8:]; len(b) >= 8; b = b[8:] {
		out = append(out, be.Uint64(b))
	}
	return out
}

const sharedName = "d.vhdx:SharedVirtualDisk"

func (l *lives) createDisk() {
	l.t.Helper()
	if _, err := l.vd.Run(l.t.Context(), "create", filepath.Join(l.dir, "d.vhdx"), "--size", "64M"); err != nil {
		l.t.Fatal(err)
	}
}

// TestFailover kills servers and has others on the same directory go on for them: by address, and for a second host by its application instance.
func TestFailover(t *testing.T) {
	l := newPrograms(t, "--ca")
	l.createDisk()
	a := l.mustStart("127.0.0.1:0")
	if _, err := l.start("127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "--standby") || !strings.Contains(err.Error(), fmt.Sprint("process ", a.proc.Pid())) {
		t.Errorf("a second server at the same time: %v", err)
	}
	addrB := freeAddr(t)
	standby := make(chan *program, 1)
	go func() {
		p, err := l.start(addrB, "--standby")
		if err != nil {
			t.Error(err)
		}
		standby <- p
	}()

	p, guid := a.client(t, 1, 0)
	app := func(version uint64) []wire.CreateContext { return appContexts(5, 0, version) }
	resp, st := p.tryOpen(with(with(diskReq(sharedName, diskContext(1)), dh2q(1, time.Minute, flagPersistent)), app(1)...))
	check(t, "open", st, ntstatus.Success)
	disk := resp.FileID
	if st := p.register(disk, 1, 0, 0xA); st != 0 {
		t.Fatalf("REGISTER: %#x", st)
	}
	st2, _ := p.command(disk, 2, []byte{0x5F, 1, 5, 0, 0, 0, 0, 0, 24, 0}, append([]byte{0, 0, 0, 0, 0, 0, 0, 0xA}, make([]byte, 16)...))
	if st2 != 0 {
		t.Fatalf("RESERVE: %#x", st2)
	}
	file, st := p.tryOpen(with(openReq("file"), dh2q(2, time.Minute, flagPersistent)))
	check(t, "open of a file", st, ntstatus.Success)
	lock := lockReq(file.FileID, wire.LockExclusive|wire.LockFailImmediately)
	check(t, "LOCK", p.ask(wire.CmdLock, lock).status(), ntstatus.Success)
	block := func(n int) string { return strings.Repeat(fmt.Sprintf("%016d", n), 32) }
	written := 0
	write := func(p *peer, id wire.FileID, n int) {
		t.Helper()
		for range n {
			check(t, "WRITE", p.write(id, uint64(written)<<12, block(written)), ntstatus.Success)
			written++
		}
	}
	verify := func(p *peer, id wire.FileID) {
		t.Helper()
		for i := range written {
			if got, st := p.read(id, uint64(i)<<12, 512); st != ntstatus.Success || got != block(i) {
				t.Fatalf("block %d after the loss of the server: %v, %.16q", i, st, got)
			}
		}
	}
	write(p, disk, 200)
	if c, err := net.Dial("tcp", addrB); err == nil {
		c.Close()
		t.Error("the server that stands by takes connections")
	}

	a.proc.Kill()
	began := time.Now()
	b := <-standby
	if b == nil {
		t.FailNow()
	}
	q, guidB := b.client(t, 1, p.sid)
	if guidB != guid {
		t.Error("it is another server")
	}
	back := func(n byte) *wire.CreateRequest {
		return with(&wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x20083, ShareAccess: 7, Disposition: wire.FileOpen, Name: sharedName}, dh2c(disk, n, flagPersistent))
	}
	resp, st = q.tryOpen(back(1))
	check(t, "reconnect", st, ntstatus.Success)
	check(t, "first WRITE", q.write(resp.FileID, 60<<20, block(0)), ntstatus.Success)
	t.Logf("I/O went on %v after the kill", time.Since(began))
	verify(q, resp.FileID)
	if k := q.keys(resp.FileID); len(k) != 1 || k[0] != 0xA {
		t.Errorf("keys % x", k)
	}
	if st := q.register(resp.FileID, 3, 0xA, 0xB); st != 0 { // not the answer of a stranger
		t.Errorf("REGISTER: %#x", st)
	}
	refile, st := q.tryOpen(with(openReq("file"), dh2c(file.FileID, 2, flagPersistent)))
	check(t, "reconnect of the file", st, ntstatus.Success)
	other, _ := b.client(t, 2, 0)
	x := other.open(openReq("file"))
	check(t, "LOCK by another", other.ask(wire.CmdLock, lockReq(x, wire.LockExclusive|wire.LockFailImmediately)).status(), ntstatus.LockNotGranted)
	check(t, "CLOSE", q.close(refile.FileID), ntstatus.Success)
	write(q, resp.FileID, 50)

	// The first server comes back and stands by; a second host takes the disk over when the other one is dead.
	addrA := a.addr.String()
	go func() {
		p, err := l.start(addrA, "--standby")
		if err != nil {
			t.Error(err)
		}
		standby <- p
	}()
	b.proc.Kill()
	a = <-standby
	if a == nil {
		t.FailNow()
	}
	host2, _ := a.client(t, 3, 0)
	again := with(with(diskReq(sharedName, diskContext(1)), dh2q(3, time.Minute, flagPersistent)), app(2)...)
	resp, st = host2.tryOpen(again)
	check(t, "open by the second host", st, ntstatus.Success)
	verify(host2, resp.FileID)
	if k := host2.keys(resp.FileID); len(k) != 0 {
		// Its host closed the initiator's last open with the take-over.
		t.Logf("keys % x", k)
	}
	old, _ := a.client(t, 1, q.sid)
	_, st = old.tryOpen(back(1))
	check(t, "reconnect of the first host", st, ntstatus.ObjectNameNotFound)
	write(host2, resp.FileID, 50)

	// A restart in good order: the client keeps its open.
	if err := a.proc.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	a = l.mustStart(addrA)
	n, _ := a.client(t, 3, host2.sid)
	disk = resp.FileID
	resp, st = n.tryOpen(back(3))
	check(t, "reconnect after a restart", st, ntstatus.Success)
	verify(n, resp.FileID)
	check(t, "CLOSE", n.close(resp.FileID), ntstatus.Success)
	if err := a.proc.Stop(20 * time.Second); err != nil {
		t.Fatal(err)
	}
	if list, err := filepath.Glob(filepath.Join(l.dir, ".*.reservations")); err != nil || len(list) != 0 {
		t.Errorf("left behind: %q", list)
	}
	if out, err := l.vd.Run(t.Context(), "check", filepath.Join(l.dir, "d.vhdx")); err != nil {
		t.Errorf("the image: %v\n%s", err, out)
	}
}

// TestStandbyEnds ends a server that waits.
func TestStandbyEnds(t *testing.T) {
	l := newPrograms(t, "--ca")
	l.mustStart("127.0.0.1:0")
	if _, _, err := l.vd.Serve(context.Background(), l.dir, "127.0.0.1:0", "--standby"); err == nil || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("--standby without --ca: %v", err)
	}
	if _, err := l.start("127.0.0.1:0", "--standby"); err == nil || !strings.Contains(err.Error(), "port that is not 0") {
		t.Errorf("--standby on any port: %v", err)
	}
	cmd := exec.Command(l.vd.Bin, "serve", "--ca", "--standby", "--listen", freeAddr(t), "--share", lab.Share, "--users", filepath.Join(l.vd.Dir, "users"), l.dir)
	p, err := lab.Start(cmd, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.WaitLine(t.Context(), "standby "); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(20 * time.Second); err != nil {
		t.Errorf("SIGTERM while it waits: %v", err)
	}
}

// TestKilledUnderLoad kills a server while clients open, lock, rename and close, and holds the next one against what they were told: what was answered has
// happened, what was not asked for has not, and of what was under way either.
func TestKilledUnderLoad(t *testing.T) {
	l := newPrograms(t, "--ca")
	s := l.mustStart("127.0.0.1:0")
	addr := s.addr.String()
	type file struct {
		name   string
		guid   byte
		id     wire.FileID
		open   bool
		locked [4]bool
		doubt  string // what was not answered: "", or the name of the operation
		at     int    // which lock, or the new name
	}
	const clients, files = 4, 8
	all := make([][]*file, clients)
	for c := range all {
		for f := range files {
			all[c] = append(all[c], &file{name: fmt.Sprintf("f%d-%d-0", c, f), guid: byte(c*files + f + 1)})
		}
	}
	// work goes on until the server is gone.
	work := func(c int, p *peer, rng *rand.Rand) {
		ask := func(f *file, what string, cmd wire.Command, body func([]byte) []byte) (*reply, bool) {
			f.doubt = what
			if p.trySend(p.message(cmd, body)) != nil {
				return nil, false
			}
			rs, err := p.tryReceive()
			for err == nil && rs[0].status() == ntstatus.Pending {
				rs, err = p.tryReceive()
			}
			if err != nil {
				return nil, false
			}
			f.doubt = ""
			return rs[0], true
		}
		for n := 1; ; n++ {
			f := all[c][rng.IntN(files)]
			switch k := rng.IntN(8); {
			case !f.open:
				r, ok := ask(f, "CREATE", wire.CmdCreate, with(openReq(f.name), dh2q(f.guid, 5*time.Minute, flagPersistent)).Append)
				if !ok {
					return
				}
				resp, err := wire.ParseCreateResponse(r.msg)
				if r.status() != ntstatus.Success || err != nil || len(resp.Contexts) != 1 {
					t.Errorf("CREATE %s: %v, %v", f.name, r.status(), err)
					return
				}
				f.id, f.open = resp.FileID, true
			case k == 0:
				r, ok := ask(f, "CLOSE", wire.CmdClose, (&wire.CloseRequest{FileID: f.id}).Append)
				if !ok {
					return
				}
				check(t, "CLOSE", r.status(), ntstatus.Success)
				f.open, f.locked = false, [4]bool{}
			case k == 1:
				f.at = n
				to := fmt.Sprintf("%s-%d", f.name[:4], n)
				b := make([]byte, 20)
				for _, c := range to {
					b = append(b, byte(c), 0)
				}
				le.PutUint32(b[16:], uint32(2*len(to)))
				r, ok := ask(f, "rename", wire.CmdSetInfo, (&wire.SetInfoRequest{InfoType: wire.InfoFile, FileInfoClass: fscc.FileRenameInformation, FileID: f.id, Buffer: b}).Append)
				if !ok {
					return
				}
				check(t, "rename", r.status(), ntstatus.Success)
				f.name = to
			default:
				f.at = rng.IntN(4)
				flags := wire.LockExclusive | wire.LockFailImmediately
				if f.locked[f.at] {
					flags = wire.LockUnlock
				}
				r, ok := ask(f, "LOCK", wire.CmdLock, (&wire.LockRequest{FileID: f.id, Locks: []wire.LockElement{{Offset: uint64(f.at) * 10, Length: 10, Flags: flags}}}).Append)
				if !ok {
					return
				}
				check(t, "LOCK", r.status(), ntstatus.Success)
				f.locked[f.at] = !f.locked[f.at]
			}
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for round := range 4 {
		var wg sync.WaitGroup
		peers := make([]*peer, clients)
		for c := range clients {
			peers[c], _ = s.client(t, byte(c+1), 0)
		}
		// First everybody takes back what must be there.
		for c, p := range peers {
			for _, f := range all[c] {
				if f.id == (wire.FileID{}) && f.doubt == "" {
					continue
				}
				var resp *wire.CreateResponse
				st := ntstatus.ObjectNameNotFound
				names := []string{f.name}
				if f.doubt == "rename" {
					names = append(names, fmt.Sprintf("%s-%d", f.name[:4], f.at))
				}
				if f.doubt == "CREATE" {
					// Its open is there already, or not yet.
					if resp, st = p.replay(with(openReq(f.name), dh2q(f.guid, 5*time.Minute, flagPersistent))); st != ntstatus.Success {
						t.Errorf("round %d: CREATE of %s again: %v", round, f.name, st)
						continue
					}
					f.open = true
				}
				for _, name := range names {
					if f.doubt == "CREATE" {
						break
					}
					if resp, st = p.tryOpen(with(openReq(name), dh2c(f.id, f.guid, flagPersistent))); st == ntstatus.Success {
						break
					}
				}
				for _, name := range names {
					// Asked for by either name, it has one.
					if _, err := os.Stat(filepath.Join(l.dir, name)); err == nil {
						f.name = name
					}
				}
				switch {
				case f.doubt == "CLOSE":
					if f.open = st == ntstatus.Success; !f.open {
						f.locked = [4]bool{}
					}
				case f.open != (st == ntstatus.Success):
					t.Errorf("round %d: %s was open: %v, reconnect: %v", round, f.name, f.open, st)
				}
				if f.doubt == "CLOSE" && st != ntstatus.Success && st != ntstatus.ObjectNameNotFound {
					t.Errorf("round %d: %s: %v", round, f.name, st)
				}
				if st == ntstatus.Success {
					f.id = resp.FileID
				}
			}
		}
		// Then a stranger feels for their locks.
		stranger, _ := s.client(t, 99, 0)
		for c := range all {
			for _, f := range all[c] {
				if !f.open {
					continue
				}
				x := stranger.open(openReq(f.name))
				for i, held := range f.locked {
					r := stranger.ask(wire.CmdLock, (&wire.LockRequest{FileID: x, Locks: []wire.LockElement{{Offset: uint64(i) * 10, Length: 10, Flags: wire.LockExclusive | wire.LockFailImmediately}}}).Append)
					got := r.status() == ntstatus.LockNotGranted
					if f.doubt == "LOCK" && f.at == i {
						f.locked[i] = got
					} else if got != held {
						t.Errorf("round %d: lock %d of %s is held: %v, want %v", round, i, f.name, got, held)
					}
				}
				check(t, "CLOSE", stranger.close(x), ntstatus.Success)
				f.doubt = ""
			}
		}
		for _, list := range all {
			for _, f := range list {
				f.doubt = ""
			}
		}
		if t.Failed() {
			t.Logf("the server printed:\n%s", s.proc.Output())
			return
		}
		started := make(chan struct{}, clients)
		for c, p := range peers {
			wg.Go(func() {
				started <- struct{}{}
				work(c, p, rand.New(rand.NewPCG(seed, uint64(round*clients+c))))
			})
		}
		for range clients {
			<-started
		}
		// Some CREATEs later.
		before, _ := s.client(t, 98, 0)
		for range 150 {
			before.close(before.open(openReq("x")))
		}
		s.proc.Kill()
		wg.Wait()
		s = l.mustStart(addr)
	}
}

// TestSeveralAddresses has one server listen on two addresses, and its list of interfaces name both.
func TestSeveralAddresses(t *testing.T) {
	l := newPrograms(t)
	_, port, _ := net.SplitHostPort(freeAddr(t))
	a := l.mustStart("127.0.0.1:"+port, "--listen", "127.0.0.2:"+port)
	if err := a.proc.WaitOutput(t.Context(), "ready smb://127.0.0.2:"+port+"/"+lab.Share+"\n"); err != nil {
		t.Error(err)
	}
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} {
		b := *a
		b.testServer = &testServer{t: t, addr: &net.TCPAddr{IP: net.ParseIP(ip), Port: a.addr.(*net.TCPAddr).Port}}
		p := b.dialPeer(t)
		p.negotiate(wire.Dialect311)
		check(t, "logon", p.logon(lab.User, lab.Password), ntstatus.Success)
		p.tree("IPC$")
		out, st := p.ioctl(wire.RelatedFileID, wire.FsctlQueryNetworkInterfaceInfo, nil, 65536)
		check(t, "query", st, ntstatus.Success)
		if len(out) != 2*interfaceInfoSize || net.IP(out[28:][:4]).String() != ip {
			t.Errorf("%d bytes, first % x", len(out), out[24:32])
		}
	}
}
