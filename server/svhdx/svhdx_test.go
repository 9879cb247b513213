package svhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
	"vdbridge/server"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
	"vdbridge/vhdx"
)

const (
	fullAccess = wire.AccessReadData | wire.AccessWriteData | wire.AccessReadAttributes | wire.AccessReadControl
	unbuffered = wire.OptNoIntermediateBuffering
)

func unhex(t testing.TB, size int, dump string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(dump), ""))
	if err != nil || len(b) > size {
		t.Fatal(err, len(b), size)
	}
	return append(b, make([]byte, size-len(b))...)
}

// newDisk makes a dynamic VHDX as the specification's examples have it: 1 GiB, sectors of 512 and 4096 bytes.
func newDisk(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.vhdx")
	if err := vhdx.CreateFile(context.Background(), path, vhdx.CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	return path
}

func service(t testing.TB, c Config) *Service {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// context1 makes an open context of version 1 (or 2) for an initiator; 0 is none.
func openCtx(version uint32, initiator byte) []byte {
	r := tunnel.OpenContextResponse{OpenContextRequest: tunnel.OpenContextRequest{Version: version, OriginatorFlags: tunnel.OriginatorPVHDParser, InitiatorHostName: "client01"}}
	if initiator != 0 {
		r.HasInitiatorID, r.InitiatorID = 1, wire.GUID{initiator, 15: 0xFF}
	}
	return r.Append(nil)
}

func mustOpen(t testing.TB, s *Service, path string, initiator byte) *open {
	t.Helper()
	return mustOpenAs(t, s, path, initiator, fullAccess)
}

func mustOpenAs(t testing.TB, s *Service, path string, initiator byte, access uint32) *open {
	t.Helper()
	o, _, err := s.OpenDisk(context.Background(), path, openCtx(1, initiator), unbuffered, access)
	if err != nil {
		t.Fatal(err)
	}
	d := o.(*open)
	t.Cleanup(func() { closeOnce(t, d) })
	return d
}

var closed sync.Map

func closeOnce(t testing.TB, o *open) {
	if _, done := closed.LoadOrStore(o, true); !done {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	}
}

// call sends an operation and splits the reply.
func call(t testing.TB, o *open, op tunnel.OpCode, body []byte) (ntstatus.Status, []byte) {
	t.Helper()
	in := make([]byte, 16, 16+len(body))
	binary.LittleEndian.PutUint32(in, uint32(op))
	binary.LittleEndian.PutUint64(in[8:], 0x77)
	out := make([]byte, 4096)
	n, err := o.Tunnel(context.Background(), tunnel.FsctlSyncTunnelRequest, append(in, body...), out)
	if err != nil {
		t.Fatalf("%v: %v", op, err)
	}
	if n < 16 || binary.LittleEndian.Uint32(out) != uint32(op) || binary.LittleEndian.Uint64(out[8:]) != 0x77 {
		t.Fatalf("%v: reply % x", op, out[:n])
	}
	return ntstatus.Status(binary.LittleEndian.Uint32(out[4:])), out[16:n]
}

// scsiBody makes the body of a SCSI operation.
func scsiBody(cdb scsi.CDB, disposition uint8, transfer uint32, data []byte) []byte {
	b := make([]byte, 36, 36+len(data))
	b[0], b[4], b[5], b[6] = 36, 16, 20, disposition
	binary.LittleEndian.PutUint32(b[12:], transfer)
	copy(b[16:], cdb[:])
	return append(b, data...)
}

// command runs a CDB and returns SCSI status, sense and data.
func command(t testing.TB, o *open, cdb scsi.CDB, out []byte) (scsi.Status, scsi.Sense, []byte) {
	t.Helper()
	disposition, transfer := tunnel.DispositionIn, uint32(4000)
	if out != nil {
		disposition, transfer = tunnel.DispositionOut, uint32(len(out))
	}
	st, b := call(t, o, tunnel.OpSCSI, scsiBody(cdb, disposition, transfer, out))
	if st != 0 || len(b) < 36 || b[0] != 36 || len(b) != 36+int(binary.LittleEndian.Uint32(b[12:])) {
		t.Fatalf("%v: tunnel status %v, reply % x", cdb.String(), st, b)
	}
	var s scsi.Sense
	if b[3] == 2 {
		var err error
		if s, err = scsi.ParseSense(b[16:36]); err != nil || b[2] != 0x84 {
			t.Fatalf("sense % x: %v", b[:36], err)
		}
	} else if want := byte(1); b[2] != want && scsi.Status(b[3]) != scsi.TaskAborted {
		t.Fatalf("SRB status %#x", b[2])
	}
	return scsi.Status(b[3]), s, b[36:]
}

func reserve(t testing.TB, o *open, action scsi.PROutAction, typ scsi.PRType, list scsi.PROutList) {
	t.Helper()
	if st, sense, _ := command(t, o, scsi.PersistentReserveOut(action, typ, 24), list.Append(nil)); st != scsi.Good {
		t.Fatalf("%v: %v %v", action, st, sense)
	}
}

func wantStatus(t testing.TB, what string, err error, want ntstatus.Status) {
	t.Helper()
	if got, _ := ntstatus.Of(err); got != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// The published example and the vectors of ms-rsvd.md 15.2, byte for byte.
func TestVectors(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	reqCtx := unhex(t, 168, `01000000 01000000 07770d201f2740834579d46f5ac43b73 00000000 01000000 1e87c71e00000000 1000 63006c00690065006e00740030003100`)
	a, reply, err := s.OpenDisk(t.Context(), path, reqCtx, unbuffered, fullAccess)
	if err != nil || !bytes.Equal(reply, reqCtx) {
		t.Fatalf("% x %v", reply, err)
	}
	defer a.Close()
	if a.Size() != 1<<30 {
		t.Errorf("size %d", a.Size())
	}
	b := mustOpen(t, s, path, 2)
	none := mustOpen(t, s, path, 0)
	exchange := func(what string, o server.DiskOpen, request, reply []byte) {
		t.Helper()
		out := make([]byte, 4096)
		n, err := o.Tunnel(t.Context(), tunnel.FsctlSyncTunnelRequest, request, out)
		if err != nil || !bytes.Equal(out[:n], reply) {
			t.Errorf("%s: %v\n got % x\nwant % x", what, err, out[:n], reply)
		}
	}
	exchange("INITIAL_INFO", a, unhex(t, 16, "01100002 00000000 1e87c71e00000000"),
		unhex(t, 40, "01100002 00000000 1e87c71e00000000 01000000 00020000 00100000 00000000 0000004000000000"))
	exchange("READ CAPACITY(10)", a, unhex(t, 60, "02100002 00000000 1e87c71e00000000 24000000 10140100 4a012000 08000000 25"),
		unhex(t, 60, "02100002 00000000 1e87c71e00000000 24000100 10140100 4a012000 08000000 0000000000000000000000000000000000000000 001fffff00000200"))
	register := "02100002 00000000 0100000000000000 24000000 0a140000 80000000 18000000 5f060000000000001800000000000000 00000000 0000000000000000 1122334455667788"
	exchange("REGISTER AND IGNORE", a, unhex(t, 76, register), unhex(t, 52, "02100002 00000000 0100000000000000 24000100 0a140000 80000000"))
	exchange("REGISTER AND IGNORE", b, unhex(t, 76, register), unhex(t, 52, "02100002 00000000 0100000000000000 24000100 0a140000 80000000"))
	reserve := unhex(t, 76, "02100002 00000000 0200000000000000 24000000 0a140000 80000000 18000000 5f010500000000001800000000000000 00000000 1122334455667788")
	exchange("RESERVE", a, reserve, unhex(t, 52, "02100002 00000000 0200000000000000 24000100 0a140000 80000000"))
	exchange("RESERVE in conflict", b, reserve, unhex(t, 52, "02100002 00000000 0200000000000000 24000118 0a140000 80000000"))
	wantStatus(t, "read without initiator", none.Read(t.Context(), make([]byte, 512), 0), 0xC05C0001)
	exchange("SRB_STATUS", none, unhex(t, 44, "04100002 00000000 0100000000000000 01"),
		unhex(t, 40, "04100002 00000000 0100000000000000 01020214 f00000000000000a"))

	s2 := service(t, Config{Version: 2})
	closeOnce(t, b)
	closeOnce(t, none)
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	reqCtx = unhex(t, 192, `02000000 01000000 72d6ba68732ad84c9f586a4b67232e0d 00000000 01000000 00000000b6e52830 1400 53004d00420044002d00530055005400300031`)
	a2, reply, err := s2.OpenDisk(t.Context(), path, reqCtx, unbuffered, fullAccess)
	want := append(bytes.Clone(reqCtx[:168]), unhex(t, 24, "01000000 02000000 00020000 00100000 0000004000000000")...)
	if err != nil || !bytes.Equal(reply, want) {
		t.Fatalf("%v\n got % x\nwant % x", err, reply, want)
	}
	for range 2 { // a second Close does nothing
		if err := a2.Close(); err != nil || len(s2.disks) != 0 {
			t.Error(err, len(s2.disks))
		}
	}
}

// ms-rsvd.md 11.1: the checks of an open context, and their order.
func TestOpenContext(t *testing.T) {
	path := newDisk(t)
	edit := func(b []byte, at int, v byte) []byte { b[at] = v; return b }
	long := func(b []byte, n int) []byte { return append(b, make([]byte, n)...) }
	for _, tt := range []struct {
		name   string
		ctx    []byte
		v1, v2 ntstatus.Status // of a server of version 1, of version 2
		reply  [2]int          // length
	}{
		{"none", nil, ntstatus.BufferTooSmall, ntstatus.BufferTooSmall, [2]int{}},
		{"one byte short", openCtx(1, 1)[:167], ntstatus.BufferTooSmall, ntstatus.BufferTooSmall, [2]int{}},
		{"short, and of a wrong version", edit(openCtx(1, 1), 0, 9)[:100], ntstatus.BufferTooSmall, ntstatus.BufferTooSmall, [2]int{}},
		{"version 2, short", openCtx(2, 1)[:191], ntstatus.InvalidParameter, ntstatus.BufferTooSmall, [2]int{}},
		{"version 2, as long as 1", openCtx(2, 1)[:168], ntstatus.InvalidParameter, ntstatus.BufferTooSmall, [2]int{}},
		{"version 0", openCtx(0, 1), ntstatus.InvalidParameter, ntstatus.InvalidParameter, [2]int{}},
		{"version 3", edit(openCtx(2, 1), 0, 3), ntstatus.InvalidParameter, ntstatus.InvalidParameter, [2]int{}},
		{"version 1", openCtx(1, 1), 0, 0, [2]int{168, 168}},
		{"version 1 with more behind it", long(openCtx(1, 1), 24), 0, 0, [2]int{168, 168}},
		{"version 2", openCtx(2, 1), ntstatus.InvalidParameter, 0, [2]int{0, 192}},
		{"HasInitiatorId 2", edit(openCtx(1, 1), 4, 2), ntstatus.InvalidParameter, ntstatus.InvalidParameter, [2]int{}},
		{"HasInitiatorId 255", edit(openCtx(1, 1), 4, 255), ntstatus.InvalidParameter, ntstatus.InvalidParameter, [2]int{}},
		{"no initiator", openCtx(1, 0), 0, 0, [2]int{168, 168}},
		{"originator 8", edit(openCtx(1, 1), 28, 8), 0, 0, [2]int{168, 168}},
		{"originator VHDMP", edit(openCtx(1, 1), 28, 4), 0, 0, [2]int{168, 168}},
		{"host name too long", edit(openCtx(1, 1), 40, 128), ntstatus.InvalidParameter, ntstatus.InvalidParameter, [2]int{}},
	} {
		for i, v := range []uint32{1, 2} {
			s := service(t, Config{Version: v})
			o, reply, err := s.OpenDisk(t.Context(), path, tt.ctx, unbuffered, fullAccess)
			want := []ntstatus.Status{tt.v1, tt.v2}[i]
			wantStatus(t, tt.name, err, want)
			if err == nil {
				if len(reply) != tt.reply[i] || !bytes.Equal(reply[:168], tt.ctx[:168]) {
					t.Errorf("%s: reply of %d bytes: % x", tt.name, len(reply), reply)
				}
				if err := o.Close(); err != nil {
					t.Error(err)
				}
			}
			if len(s.disks) != 0 {
				t.Errorf("%s: %d disks are left open", tt.name, len(s.disks))
			}
		}
	}
}

func TestFiles(t *testing.T) {
	s := service(t, Config{})
	dir := t.TempDir()
	text := filepath.Join(dir, "text.vhdx")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no disk "), 1<<17), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty.vhdx")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(s *Service, path string, want ntstatus.Status) {
		t.Helper()
		_, _, err := s.OpenDisk(t.Context(), path, openCtx(1, 1), unbuffered, fullAccess)
		wantStatus(t, filepath.Base(path), err, want)
	}
	refused(s, text, ntstatus.SVHDXWrongFileType)
	refused(s, empty, ntstatus.SVHDXWrongFileType)
	refused(s, dir, ntstatus.SVHDXWrongFileType)
	refused(s, filepath.Join(dir, "missing.vhdx"), ntstatus.ObjectNameNotFound)

	path := newDisk(t)
	a := mustOpen(t, s, path, 1)
	link := filepath.Join(dir, "link.vhdx")
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	b := mustOpen(t, s, link, 2) // the same file by another name is the same disk
	if a.d != b.d {
		t.Error("two names of one file are two disks")
	}
	refused(service(t, Config{}), path, ntstatus.SharingViolation) // another server
	vhdmp := openCtx(1, 1)
	vhdmp[28] = 4
	if _, _, err := s.OpenDisk(t.Context(), path, vhdmp, 0, fullAccess); !errors.Is(err, ntstatus.VHDShared) {
		t.Errorf("VHDMP open of a shared disk: %v", err)
	}
	for what, want := range map[server.DiskOpen]uint32{a: tunnel.HandleStateShared, nil: tunnel.HandleStateFileShared} {
		if support, state := s.QuerySupport(path, what); support != tunnel.SupportV1 || state != want {
			t.Errorf("support %d state %d, want state %d", support, state, want)
		}
	}
	closeOnce(t, a)
	closeOnce(t, b)
	if support, state := service(t, Config{Version: 2}).QuerySupport(path, nil); support != tunnel.SupportV2 || state != tunnel.HandleStateNone {
		t.Errorf("support %d state %d", support, state)
	}
	f, _, err := s.OpenDisk(t.Context(), path, vhdmp, 0, fullAccess)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8)
	wantStatus(t, "buffered read of the file", f.Read(t.Context(), p, 0), ntstatus.NotSupported)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if f, _, err = s.OpenDisk(t.Context(), path, vhdmp, unbuffered, fullAccess); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.OpenDisk(t.Context(), path, vhdmp, unbuffered, fullAccess); !errors.Is(err, ntstatus.VHDShared) {
		t.Errorf("a second VHDMP open: %v", err)
	}
	if _, state := s.QuerySupport(path, f); state != tunnel.HandleStateShared {
		t.Errorf("state %d of a VHDMP open", state)
	}
	if err := f.Read(t.Context(), p, 0); err != nil || string(p) != "vhdxfile" {
		t.Errorf("the file begins with %q, %v", p, err)
	}
	st, err := os.Stat(path)
	if err != nil || f.Size() != st.Size() {
		t.Errorf("size %d of %d, %v", f.Size(), st.Size(), err)
	}
	wantStatus(t, "read behind the end", f.Read(t.Context(), p, f.Size()), ntstatus.EndOfFile)
	_, err = f.Tunnel(t.Context(), tunnel.FsctlSyncTunnelRequest, make([]byte, 16), make([]byte, 64))
	wantStatus(t, "tunnel of the file itself", err, ntstatus.InvalidDeviceRequest)
	refused(s, path, ntstatus.SharingViolation)
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	mustOpen(t, s, path, 1)
}

func TestReadWrite(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	a, b := mustOpen(t, s, path, 1), mustOpen(t, s, path, 2)
	ctx := t.Context()
	p, q := bytes.Repeat([]byte{0x5A}, 4096), make([]byte, 4096)
	if err := a.Write(ctx, p, 8192, true); err != nil {
		t.Fatal(err)
	}
	if err := b.Read(ctx, q, 8192); err != nil || !bytes.Equal(p, q) {
		t.Error("another open does not see a write", err)
	}
	if st, sense, got := command(t, b, scsi.Read16(16, 4, false), nil); st != scsi.Good || !bytes.Equal(got, p[:2048]) {
		t.Errorf("READ(16): %v %v, %d bytes", st, sense, len(got))
	}
	if st, sense, _ := command(t, b, scsi.Write10(17, 1, false), make([]byte, 512)); st != scsi.Good {
		t.Errorf("WRITE(10): %v %v", st, sense)
	}
	if err := a.Read(ctx, q, 8192); err != nil || q[511] != 0x5A || q[512] != 0 || q[1024] != 0x5A {
		t.Error("a SCSI write is not seen", err)
	}
	if err := a.Flush(ctx); err != nil {
		t.Error(err)
	}
	wantStatus(t, "unaligned", a.Read(ctx, q[:100], 0), ntstatus.InvalidParameter)
	wantStatus(t, "behind the end", a.Read(ctx, q, 1<<30), 0xC05C0001)
	wantStatus(t, "behind the end", a.Write(ctx, q, 1<<30-512, false), 0xC05C0002)
	if st, r := call(t, a, tunnel.OpSRBStatus, append([]byte{1}, make([]byte, 27)...)); st != 0 || r[0] != 1 || r[1] != 0x84 || r[2] != 2 || r[3] != 20 {
		t.Errorf("SRB_STATUS: %v % x", st, r)
	} else if sense, err := scsi.ParseSense(r[4:]); err != nil || sense.Code() != scsi.CodeLBAOutOfRange || sense.Info != 1<<21 {
		t.Errorf("stored sense: %v %v", sense, err)
	}
	if st, r := call(t, a, tunnel.OpSRBStatus, append([]byte{9}, make([]byte, 27)...)); st != ntstatus.SVHDXErrorNotAvailable || len(r) != 0 {
		t.Errorf("SRB_STATUS without entry: %v % x", st, r)
	}
	if st, _ := call(t, b, tunnel.OpSRBStatus, append([]byte{1}, make([]byte, 27)...)); st != ntstatus.SVHDXErrorNotAvailable {
		t.Errorf("SRB_STATUS on another open: %v", st)
	}
	o, _, err := s.OpenDisk(ctx, path, openCtx(1, 3), 0, fullAccess)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, "buffered read", o.Read(ctx, q, 0), ntstatus.NotSupported)
	wantStatus(t, "buffered write", o.Write(ctx, q, 0, false), ntstatus.NotSupported)
	_ = o.Close()
	o, _, err = s.OpenDisk(ctx, path, openCtx(1, 0), 0, fullAccess)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, "without initiator comes first", o.Read(ctx, q, 0), 0xC05C0001)
	for i := 2; i <= 600; i++ { // the ring goes round: key 0 after 255
		wantStatus(t, "key", o.Write(ctx, q, 0, false), 0xC05C0000|ntstatus.Status(i%256))
	}
	if n := len(o.(*open).stored.entries); n != 256 {
		t.Errorf("%d entries are stored", n)
	}
	_ = o.Close()
}

// ramDisk is a disk in memory behind a file that exists.
type ramDisk struct{ *lutest.Disk }

func (ramDisk) Properties() Properties { return Properties{ID: wire.GUID{1}} }

func ramService(t testing.TB, d *lutest.Disk) (*Service, string) {
	path := filepath.Join(t.TempDir(), "ram")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return service(t, Config{OpenFile: func(context.Context, string, bool) (Disk, error) { return ramDisk{d}, nil }}), path
}

func TestWarmPathDoesNotAllocate(t *testing.T) {
	s, path := ramService(t, lutest.New(1<<20))
	o := mustOpen(t, s, path, 1)
	ctx, buf, out := context.Background(), make([]byte, 4096), make([]byte, 52+4096)
	read := append(unhex(t, 16, "02100002"), scsiBody(scsi.Read16(8, 8, false), 1, 4096, nil)...)
	write := append(unhex(t, 16, "02100002"), scsiBody(scsi.Write16(8, 8, false), 0, 4096, buf)...)
	var d server.DiskOpen = o
	for what, f := range map[string]func(){
		"Read":  func() { _ = d.Read(ctx, buf, 4096) },
		"Write": func() { _ = d.Write(ctx, buf, 4096, false) },
		"tunnelled READ(16)": func() {
			if n, err := d.Tunnel(ctx, tunnel.FsctlSyncTunnelRequest, read, out); err != nil || n != 52+4096 {
				t.Error(n, err)
			}
		},
		"tunnelled WRITE(16)": func() {
			if n, err := d.Tunnel(ctx, tunnel.FsctlSyncTunnelRequest, write, out); err != nil || n != 52 {
				t.Error(n, err)
			}
		},
	} {
		if a := testing.AllocsPerRun(500, f); a != 0 {
			t.Errorf("%s allocates %v times", what, a)
		}
	}
}
