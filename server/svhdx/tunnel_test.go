package svhdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"vdbridge/scsi"
	"vdbridge/scsi/lu/lutest"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/vhdx"
)

// ms-rsvd.md 11.4: dispatch, and the room for replies.
func TestDispatch(t *testing.T) {
	path := newDisk(t)
	for _, v := range []uint32{1, 2} {
		s := service(t, Config{Version: v})
		o := mustOpen(t, s, path, 1)
		tun := func(op uint32, in, room int) (int, error) {
			b := binary.LittleEndian.AppendUint32(nil, op)
			return o.Tunnel(t.Context(), tunnel.FsctlAsyncTunnelRequest, append(b, make([]byte, in-4)...), make([]byte, room))
		}
		_, err := o.Tunnel(t.Context(), 0x90300, make([]byte, 16), make([]byte, 64))
		wantStatus(t, "another FSCTL", err, ntstatus.InvalidDeviceRequest)
		for n := range 16 {
			_, err := o.Tunnel(t.Context(), tunnel.FsctlSyncTunnelRequest, make([]byte, n), make([]byte, 64))
			wantStatus(t, "short header", err, ntstatus.BufferTooSmall)
		}
		for _, op := range []uint32{0, 0x1001, 0x01001001, 0x03001001, 0x82001001} {
			_, err := tun(op, 72, 4096)
			wantStatus(t, "top byte", err, ntstatus.InvalidDeviceRequest)
		}
		class2 := ntstatus.SVHDXVersionMismatch
		if v == 2 {
			class2 = ntstatus.InvalidParameter // unknown within the class
		}
		for op, want := range map[tunnel.OpCode]ntstatus.Status{0x02000001: ntstatus.SVHDXVersionMismatch, 0x02003001: ntstatus.SVHDXVersionMismatch, 0x02FFF001: ntstatus.SVHDXVersionMismatch,
			0x02001000: ntstatus.InvalidParameter, 0x02001007: ntstatus.InvalidParameter, 0x02002003: class2, 0x020020FF: class2} {
			if st, body := call(t, o, op, nil); st != want || len(body) != 0 {
				t.Errorf("%v: %v and %d bytes, want %v", op, st, len(body), want)
			}
			_, err := tun(uint32(op), 16, 15)
			wantStatus(t, "no room for a header", err, ntstatus.BufferTooSmall)
		}
		for op, need := range map[tunnel.OpCode]struct {
			room int
			want ntstatus.Status
			v2   bool
		}{
			tunnel.OpGetInitialInfo: {40, ntstatus.BufferTooSmall, false}, tunnel.OpCheckConnectionStatus: {16, ntstatus.BufferOverflow, false},
			tunnel.OpSRBStatus: {40, ntstatus.InvalidParameter, false}, tunnel.OpGetDiskInfo: {72, ntstatus.BufferTooSmall, false},
			tunnel.OpSCSI: {52, ntstatus.InvalidParameter, false}, tunnel.OpValidateDisk: {17, ntstatus.BufferTooSmall, false},
			tunnel.OpQuerySafeSize: {24, ntstatus.BufferTooSmall, true},
		} {
			if need.v2 && v < 2 {
				continue
			}
			for _, room := range []int{0, need.room - 1} {
				n, err := tun(uint32(op), 72, room)
				wantStatus(t, op.String(), err, need.want)
				if n != 0 {
					t.Errorf("%v: %d bytes", op, n)
				}
			}
			if _, err := tun(uint32(op), 72, need.room); err != nil {
				t.Errorf("%v with just enough room: %v", op, err)
			}
		}
		closeOnce(t, o)
	}
}

func TestQueries(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	o := mustOpen(t, s, path, 1)
	if st, b := call(t, o, tunnel.OpCheckConnectionStatus, nil); st != 0 || len(b) != 0 {
		t.Errorf("CHECK_CONNECTION_STATUS: %v % x", st, b)
	}
	for _, n := range []int{0, 56} {
		if st, b := call(t, o, tunnel.OpValidateDisk, make([]byte, n)); st != 0 || !bytes.Equal(b, []byte{1}) {
			t.Errorf("VALIDATE_DISK: %v % x", st, b)
		}
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	st, b := call(t, o, tunnel.OpGetDiskInfo, make([]byte, 56))
	info := o.d.Disk.(vhdxDisk).Info()
	if st != 0 || len(b) != 56 || le.Uint32(b) != 3 || le.Uint32(b[4:]) != 3 || int64(le.Uint32(b[8:])) != info.BlockSize || !bytes.Equal(b[12:28], make([]byte, 16)) ||
		!bytes.Equal(b[28:32], []byte{1, 1, 0, 0}) || le.Uint64(b[32:]) != uint64(fi.Size()) || !bytes.Equal(b[40:], info.VirtualDiskID[:]) {
		t.Errorf("GET_DISK_INFO: %v % x", st, b)
	}
	fixed := filepath.Join(t.TempDir(), "fixed.vhdx")
	if err := vhdx.CreateFile(t.Context(), fixed, vhdx.CreateOptions{Size: 4 << 20, Fixed: true, LogicalSector: 4096}); err != nil {
		t.Fatal(err)
	}
	set := filepath.Join(filepath.Dir(path), "set.VHDS")
	if err := os.Link(path, set); err != nil {
		t.Fatal(err)
	}
	closeOnce(t, o)
	for v, format := range map[uint32]uint32{1: tunnel.DiskFormatVHDX, 2: tunnel.DiskFormatVHDSet} {
		o = mustOpen(t, service(t, Config{Version: v}), set, 1)
		if _, b = call(t, o, tunnel.OpGetDiskInfo, nil); le.Uint32(b[4:]) != format {
			t.Errorf("GET_DISK_INFO of a .vhds file, server version %d: % x", v, b)
		}
		closeOnce(t, o)
	}
	o = mustOpen(t, s, fixed, 1)
	if _, b = call(t, o, tunnel.OpGetDiskInfo, nil); le.Uint32(b) != 2 || le.Uint32(b[8:]) != 0 {
		t.Errorf("GET_DISK_INFO of a fixed disk: % x", b)
	}
	if _, b = call(t, o, tunnel.OpGetInitialInfo, nil); le.Uint32(b[4:]) != 4096 || le.Uint64(b[16:]) != 4<<20 {
		t.Errorf("GET_INITIAL_INFO: % x", b)
	}
	for _, p := range []scsi.CDB{scsi.InquiryVPD(scsi.VPDLogicalBlockProvisioning, 8), scsi.InquiryVPD(scsi.VPDBlockLimits, 64)} {
		if st, sense, _ := command(t, o, p, nil); st != scsi.Good {
			t.Errorf("%v: %v %v", p.String(), st, sense)
		}
	}
}

// ms-rsvd.md 11.6: what is refused before the CDB is run, and the shape of the refusal.
func TestSCSIRefusals(t *testing.T) {
	path := newDisk(t)
	s := service(t, Config{})
	o, none := mustOpen(t, s, path, 1), mustOpen(t, s, path, 0)
	good := scsiBody(scsi.ReadCapacity10(), 1, 8, make([]byte, 8))
	edit := func(at int, v byte) []byte { b := bytes.Clone(good); b[at] = v; return b }
	for _, tt := range []struct {
		name string
		o    *open
		body []byte
		want ntstatus.Status
	}{
		{"as it should be", o, good, 0},
		{"without data", o, good[:36], 0},
		{"empty", o, nil, ntstatus.InvalidParameter},
		{"35 bytes", o, good[:35], ntstatus.InvalidParameter},
		{"Length 35", o, edit(0, 35), ntstatus.InvalidParameter},
		{"Length 37", o, edit(0, 37), ntstatus.InvalidParameter},
		{"Length 36 + 256", o, edit(1, 1), ntstatus.InvalidParameter},
		{"SenseInfoExLength 21", o, edit(5, 21), ntstatus.InvalidParameter},
		{"SenseInfoExLength 0", o, edit(5, 0), 0},
		{"CDBLength 17", o, edit(4, 17), ntstatus.InvalidParameter},
		{"CDBLength 10", o, edit(4, 10), 0},
		{"Disposition 3", o, edit(6, 3), ntstatus.InvalidParameter},
		{"DataTransferLength below the data", o, edit(12, 7), ntstatus.InvalidParameter},
		{"more data than DataTransferLength", o, edit(12, 7)[:36], ntstatus.InvalidParameter},
		{"data out that are not there", o, scsiBody(scsi.Write16(0, 1, false), 0, 512, make([]byte, 511)), ntstatus.InvalidParameter},
		{"data in without a direction", o, scsiBody(scsi.Read16(0, 1, false), 2, 512, nil), ntstatus.InvalidParameter},
		{"data in, direction out", o, scsiBody(scsi.ReadCapacity10(), 0, 0, nil), ntstatus.InvalidParameter},
		{"no initiator", none, good, ntstatus.InvalidHandle},
		{"no initiator, and Length 35", none, edit(0, 35), ntstatus.InvalidHandle},
	} {
		st, b := call(t, tt.o, tunnel.OpSCSI, tt.body)
		if st != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, st, tt.want)
		}
		if st != 0 && !bytes.Equal(b, tt.body[:min(36, len(tt.body))]) {
			t.Errorf("%s: the request's structure does not come back: % x", tt.name, b)
		}
	}
	// Room in the reply that is less than what the client says it takes.
	in := append(unhex(t, 16, "02100002"), scsiBody(scsi.Read16(0, 1, false), 1, 512, nil)...)
	_, err := o.Tunnel(t.Context(), tunnel.FsctlSyncTunnelRequest, in, make([]byte, 52+511))
	wantStatus(t, "too little room", err, ntstatus.BufferTooSmall)
}

func TestVersion2Operations(t *testing.T) {
	o := mustOpen(t, service(t, Config{Version: 2}), newDisk(t), 1)
	meta := func(kind byte) []byte { return append(append(make([]byte, 16), kind), make([]byte, 80)...) }
	for _, tt := range []struct {
		op   tunnel.OpCode
		body []byte
		want ntstatus.Status
		size int
	}{
		{tunnel.OpQuerySafeSize, nil, 0, 8},
		{tunnel.OpChangeTrackingGetParameters, nil, 0, 16},
		{tunnel.OpChangeTrackingStop, nil, ntstatus.InvalidDeviceState, 4},
		{tunnel.OpVHDSetQueryInformation, make([]byte, 24), ntstatus.InvalidDeviceRequest, 0},
		{tunnel.OpMetaOperationStart, meta(0), ntstatus.NotSupported, 0},
		{tunnel.OpMetaOperationStart, meta(1), ntstatus.InvalidDeviceRequest, 0},
		{tunnel.OpMetaOperationStart, meta(6), ntstatus.InvalidParameter, 0},
		{tunnel.OpDeleteSnapshot, make([]byte, 24), ntstatus.NotSupported, 0},
		{tunnel.OpChangeTrackingStart, make([]byte, 56), ntstatus.NotSupported, 0},
		{tunnel.OpQueryVirtualDiskChanges, make([]byte, 56), ntstatus.InvalidParameter, 0},
		{tunnel.OpMetaOperationQueryProgress, make([]byte, 16), ntstatus.InvalidParameter, 0},
	} {
		if st, b := call(t, o, tt.op, tt.body); st != tt.want || len(b) != tt.size {
			t.Errorf("%v: %v and %d bytes, want %v and %d", tt.op, st, len(b), tt.want, tt.size)
		}
		if n := minInput[tt.op]; n > 0 {
			in := append(binary.LittleEndian.AppendUint32(nil, uint32(tt.op)), make([]byte, 12+n-1)...)
			_, err := o.Tunnel(t.Context(), tunnel.FsctlSyncTunnelRequest, in, make([]byte, 4096))
			wantStatus(t, "short "+tt.op.String(), err, ntstatus.BufferTooSmall)
		}
	}
	if _, b := call(t, o, tunnel.OpGetInitialInfo, nil); b[0] != 2 { // on an open with a context of version 1, too
		t.Errorf("server version %d", b[0])
	}
}

func FuzzTunnel(f *testing.F) {
	f.Add(unhex(f, 60, "02100002 00000000 1e87c71e00000000 24000000 10140100 4a012000 08000000 25"), uint16(4096), false)
	f.Add(unhex(f, 76, "02100002 00000000 0100000000000000 24000000 0a140000 80000000 18000000 5f06000000000000180000000000 0000 00000000 0000000000000000 1122334455667788"), uint16(52), false)
	f.Add(unhex(f, 44, "04100002 00000000 0100000000000000 01"), uint16(40), true)
	f.Add(unhex(f, 92, "01210002"), uint16(16), false)
	f.Fuzz(func(t *testing.T, in []byte, room uint16, none bool) {
		s, path := ramService(t, lutest.New(1<<16))
		s.cfg.Version = 2
		initiator := byte(1)
		if none {
			initiator = 0
		}
		o := mustOpen(t, s, path, initiator)
		n, err := o.Tunnel(context.Background(), tunnel.FsctlSyncTunnelRequest, in, make([]byte, room))
		if n < 0 || n > int(room) || err == nil && n < 16 {
			t.Fatalf("%d bytes, room for %d, %v", n, room, err)
		}
		if _, ok := ntstatus.Of(err); err != nil && !ok {
			t.Fatalf("an error without a status: %v", err)
		}
	})
}
