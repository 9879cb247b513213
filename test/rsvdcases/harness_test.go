package rsvdcases

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"vdbridge/client"
	"vdbridge/server"
	"vdbridge/server/svhdx"
	"vdbridge/smb/auth"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
	"vdbridge/test/leak"
	"vdbridge/vhdx"
)

var bg = context.Background()

const (
	user, password, share = "tester", "Password01!", "SMBClustered"
	caShare               = share + "CA" // the same directory, continuously available
	diskName              = "test.vhdx"
	diskSize              = 1 << 30
)

// sut is the server under test, with test.vhdx as the suite wants it: 1 GiB, dynamic, sectors of 512 and 4096 bytes.
type sut struct {
	addr    string
	dir     string
	version uint32
}

func start(t *testing.T, version uint32) *sut {
	t.Helper()
	leak.Check(t)
	dir := t.TempDir()
	if err := vhdx.CreateFile(bg, filepath.Join(dir, diskName), vhdx.CreateOptions{Size: diskSize}); err != nil {
		t.Fatal(err)
	}
	disks, err := svhdx.New(svhdx.Config{Version: version})
	if err != nil {
		t.Fatal(err)
	}
	srv, err := server.New(server.Config{
		Shares: []server.Share{{Name: share, Dir: dir}, {Name: caShare, Dir: dir, CA: true}}, Users: auth.NewUsers(map[string]string{user: password}), Disks: disks,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(bg, l) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
		if err := <-done; !errors.Is(err, server.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return &sut{addr: l.Addr().String(), dir: dir, version: version}
}

// each runs a case with every pair of server version and context version that the specification allows.
func each(t *testing.T, f func(t *testing.T, s *sut, ctxVersion uint32)) {
	for _, c := range []struct{ server, context uint32 }{{1, 1}, {2, 1}, {2, 2}} {
		t.Run(fmt.Sprintf("server %d context %d", c.server, c.context), func(t *testing.T) { f(t, start(t, c.server), c.context) })
	}
}

// connect logs on and connects to the share on a connection of its own, as each client of the suite does.
func (s *sut) connect(t *testing.T) *client.Tree {
	t.Helper()
	c, err := client.Dial(bg, s.addr, client.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	sess, err := c.Session(bg, auth.Credentials{User: user, Password: password}, client.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := sess.Tree(bg, share)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// open is one open of the suite's client: its counter of requests is pre-incremented.
type open struct {
	t       *testing.T
	f       *client.File
	id      uint64
	context []byte // of the reply; nil if there was none
}

type openArgs struct {
	version     uint32
	noInitiator bool
	initiator   wire.GUID // zero: a random one
	host        string    // "": Client01
	options     uint32    // 0: FILE_NO_INTERMEDIATE_BUFFERING
	name        string
	change      func(c []byte) []byte // edits the context
}

func randomGUID() (g wire.GUID) {
	rand.Read(g[:])
	return g
}

func openRequest(a openArgs) (string, client.OpenOptions) {
	r := tunnel.OpenContextRequest{Version: a.version, HasInitiatorID: 1, InitiatorID: a.initiator, OriginatorFlags: tunnel.OriginatorPVHDParser, InitiatorHostName: a.host}
	if r.InitiatorID == (wire.GUID{}) {
		r.InitiatorID = randomGUID()
	}
	if a.noInitiator {
		r.HasInitiatorID = 0
	}
	if a.host == "" {
		r.InitiatorHostName = "Client01"
	}
	data := r.Append(nil)
	if a.change != nil {
		data = a.change(data)
	}
	if a.options == 0 {
		a.options = wire.OptNoIntermediateBuffering
	}
	if a.name == "" {
		a.name = diskName + tunnel.Suffix
	}
	return a.name, client.OpenOptions{
		Access: 0x00020083, Share: 7, Disposition: wire.FileOpen, Options: a.options,
		Contexts: []wire.CreateContext{{Name: wire.CreateSVHDX, Data: data}},
	}
}

func openDisk(t *testing.T, tree *client.Tree, a openArgs) *open {
	t.Helper()
	name, o := openRequest(a)
	f, err := tree.Open(bg, name, o)
	if err != nil {
		t.Fatalf("CREATE: %v", err)
	}
	c, _ := f.Context(wire.CreateSVHDX)
	return &open{t: t, f: f, context: c}
}

func (o *open) close() {
	o.t.Helper()
	if err := o.f.Close(); err != nil {
		o.t.Fatalf("CLOSE: %v", err)
	}
}

// raw sends any input and returns the output, up to max bytes.
func (o *open) raw(code uint32, in []byte, max int) ([]byte, error) {
	out := make([]byte, max)
	n, err := o.f.Ioctl(bg, code, in, nil, out, nil)
	return out[:n], err
}

// tunnel sends an operation and checks what the suite checks of every reply: SMB status 0, echoes, tunnel status 0. It returns what follows the header.
func (o *open) tunnel(op tunnel.OpCode, body []byte) []byte {
	o.t.Helper()
	b, status := o.tunnelStatus(op, body, 4096)
	if status != 0 {
		o.t.Fatalf("%v: tunnel status %v", op, status)
	}
	return b
}

// tunnelStatus is tunnel for operations that the server is expected to refuse.
func (o *open) tunnelStatus(op tunnel.OpCode, body []byte, max int) ([]byte, ntstatus.Status) {
	o.t.Helper()
	o.id++
	in := append((&tunnel.RequestHeader{Op: op, RequestID: o.id}).Append(nil), body...)
	out, err := o.raw(tunnel.FsctlSyncTunnelRequest, in, max)
	if err != nil {
		o.t.Fatalf("%v: SMB status: %v", op, err)
	}
	h, err := tunnel.ParseResponseHeader(out)
	if err != nil {
		o.t.Fatalf("%v: %v", op, err)
	}
	if h.Op != op || h.RequestID != o.id {
		o.t.Fatalf("%v: the reply echoes %v and request %d, want %d", op, h.Op, h.RequestID, o.id)
	}
	return out[tunnel.HeaderSize:], h.Status
}

// scsi sends a CDB as the suite does, field by field.
func (o *open) scsi(cdb []byte, cdbLength, disposition uint8, flags uint32, data []byte) tunnel.SCSIResponse {
	o.t.Helper()
	r := tunnel.SCSIRequest{CDBLength: cdbLength, SenseLength: 20, Disposition: disposition, SRBFlags: flags, DataTransferLength: uint32(len(data))}
	copy(r.CDB[:], cdb)
	b := o.tunnel(tunnel.OpSCSI, append(r.Append(nil), data...))
	rep, err := tunnel.ParseSCSIResponse(b)
	if err != nil {
		o.t.Fatal(err)
	}
	return rep
}

// reserveOut sends PERSISTENT RESERVE OUT as the suite does: CDBLength 10, 24 bytes, Disposition 0, SrbFlags 0x80.
func (o *open) reserveOut(action, typ byte, key, actionKey uint64) tunnel.SCSIResponse {
	o.t.Helper()
	cdb := []byte{0x5f, action, typ, 0, 0, 0, 0, 0, 24, 0}
	list := make([]byte, 24)
	binary.BigEndian.PutUint64(list, key)
	binary.BigEndian.PutUint64(list[8:], actionKey)
	return o.scsi(cdb, 10, tunnel.DispositionOut, 0x80, list)
}

// good checks a reply of PERSISTENT RESERVE OUT.
func (o *open) good(what string, r tunnel.SCSIResponse) {
	o.t.Helper()
	if r.SCSIStatus != 0 || r.Disposition != 0 || r.Length != 36 {
		o.t.Fatalf("%s: ScsiStatus %#x, Disposition %d, Length %d", what, r.SCSIStatus, r.Disposition, r.Length)
	}
}
