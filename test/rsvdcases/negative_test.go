package rsvdcases

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"vdbridge/client"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

func wantStatus(t *testing.T, what string, err error, want ntstatus.Status) {
	t.Helper()
	if got, _ := ntstatus.Of(err); got != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// ms-rsvd.md 11.4: what the SMB2 header says, before an operation is looked at.
func TestNegative_TunnelDispatch(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		o := openDisk(t, s.connect(t), openArgs{version: v})
		defer o.close()
		for n := range tunnel.HeaderSize {
			_, err := o.raw(tunnel.FsctlSyncTunnelRequest, make([]byte, n), 4096)
			wantStatus(t, "short header", err, ntstatus.BufferTooSmall)
		}
		for _, code := range []uint32{0x00001001, 0x01001001, 0x03001001, 0xFF001001} {
			in := binary.LittleEndian.AppendUint32(nil, code)
			_, err := o.raw(tunnel.FsctlSyncTunnelRequest, append(in, make([]byte, 12)...), 4096)
			wantStatus(t, "top byte", err, ntstatus.InvalidDeviceRequest)
		}
		for _, c := range []struct {
			op   tunnel.OpCode
			want ntstatus.Status
		}{
			{0x02001000, ntstatus.InvalidParameter}, {0x02001007, ntstatus.InvalidParameter}, {0x02001FFF, ntstatus.InvalidParameter},
			{0x02003001, ntstatus.SVHDXVersionMismatch}, {0x02000001, ntstatus.SVHDXVersionMismatch},
		} {
			if b, got := o.tunnelStatus(c.op, nil, 4096); got != c.want || len(b) != 0 {
				t.Errorf("%v: tunnel status %v and %d bytes, want %v", c.op, got, len(b), c.want)
			}
		}
		// An operation of version 2 on a server of version 1.
		if s.version == 1 {
			if _, got := o.tunnelStatus(tunnel.OpQuerySafeSize, nil, 4096); got != ntstatus.SVHDXVersionMismatch {
				t.Errorf("QUERY_SAFE_SIZE: %v", got)
			}
		}
	})
}

func TestNegative_SmallOutput(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		o := openDisk(t, s.connect(t), openArgs{version: v})
		defer o.close()
		scsi := tunnel.SCSIRequest{CDBLength: 16, SenseLength: 20, Disposition: tunnel.DispositionNone}
		for _, c := range []struct {
			op   tunnel.OpCode
			body []byte
			min  int
			want ntstatus.Status
		}{
			{tunnel.OpGetInitialInfo, nil, 40, ntstatus.BufferTooSmall},
			{tunnel.OpCheckConnectionStatus, nil, 16, ntstatus.BufferOverflow},
			{tunnel.OpSRBStatus, make([]byte, 28), 40, ntstatus.InvalidParameter},
			{tunnel.OpGetDiskInfo, make([]byte, 56), 72, ntstatus.BufferTooSmall},
			{tunnel.OpSCSI, scsi.Append(nil), 52, ntstatus.InvalidParameter},
			{tunnel.OpValidateDisk, make([]byte, 56), 17, ntstatus.BufferTooSmall},
		} {
			for _, n := range []int{0, c.min - 1} {
				in := append((&tunnel.RequestHeader{Op: c.op}).Append(nil), c.body...)
				_, err := o.raw(tunnel.FsctlSyncTunnelRequest, in, n)
				wantStatus(t, c.op.String(), err, c.want)
			}
			if c.op != tunnel.OpSRBStatus { // for which nothing is stored
				if _, got := o.tunnelStatus(c.op, c.body, c.min); got != 0 {
					t.Errorf("%v with room for exactly the reply: %v", c.op, got)
				}
			}
		}
		_, err := o.raw(tunnel.FsctlQuerySharedVirtualDiskSupport, nil, 7)
		wantStatus(t, "support", err, ntstatus.BufferTooSmall)
	})
}

// ms-rsvd.md 11.6
func TestNegative_SCSI(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		tree := s.connect(t)
		o := openDisk(t, tree, openArgs{version: v})
		defer o.close()
		valid := func(change func(b []byte)) []byte {
			r := tunnel.SCSIRequest{CDBLength: 16, SenseLength: 20, Disposition: tunnel.DispositionIn, DataTransferLength: 8}
			r.CDB[0] = 0x25
			b := append(r.Append(nil), make([]byte, 8)...)
			change(b)
			return b
		}
		for name, body := range map[string][]byte{
			"35 bytes":               valid(func([]byte) {})[:35],
			"Length 35":              valid(func(b []byte) { b[0] = 35 }),
			"Length 40":              valid(func(b []byte) { b[0] = 40 }),
			"SenseInfoExLength 21":   valid(func(b []byte) { b[5] = 21 }),
			"CDBLength 17":           valid(func(b []byte) { b[4] = 17 }),
			"more data than it says": append(valid(func([]byte) {}), 0),
		} {
			if _, got := o.tunnelStatus(tunnel.OpSCSI, body, 4096); got != ntstatus.InvalidParameter {
				t.Errorf("%s: tunnel status %v", name, got)
			}
		}
		// Data-in requests come with as many bytes as they ask for, or with none.
		if _, got := o.tunnelStatus(tunnel.OpSCSI, valid(func([]byte) {})[:36], 4096); got != 0 {
			t.Errorf("data-in request without data: %v", got)
		}
		none := openDisk(t, tree, openArgs{version: v, noInitiator: true})
		defer none.close()
		if _, got := none.tunnelStatus(tunnel.OpSCSI, valid(func([]byte) {}), 4096); got != ntstatus.InvalidHandle {
			t.Errorf("without an initiator: tunnel status %v", got)
		}
		if _, got := none.tunnelStatus(tunnel.OpGetDiskInfo, make([]byte, 56), 4096); got != 0 {
			t.Errorf("information without an initiator: tunnel status %v", got)
		}
	})
}

func TestNegative_OpenContext(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		tree := s.connect(t)
		set := func(at int, value byte) func([]byte) []byte {
			return func(b []byte) []byte { b[at] = value; return b }
		}
		cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
		for _, c := range []struct {
			name   string
			change func([]byte) []byte
			want   ntstatus.Status
			when   bool
		}{
			{"HasInitiatorId 2", set(4, 2), ntstatus.InvalidParameter, true},
			{"HasInitiatorId 255", set(4, 255), ntstatus.InvalidParameter, true},
			{"version 0", set(0, 0), ntstatus.InvalidParameter, true},
			{"version 3", set(0, 3), ntstatus.InvalidParameter, true},
			{"version 2 on a server of version 1", func(b []byte) []byte { return append(set(0, 2)(b), make([]byte, 24)...) }, ntstatus.InvalidParameter, s.version == 1},
			{"empty", cut(0), ntstatus.BufferTooSmall, true},
			{"167 bytes", cut(167), ntstatus.BufferTooSmall, true},
			{"version 2 with 191 bytes", func(b []byte) []byte { return b[:191] }, ntstatus.BufferTooSmall, v == 2},
		} {
			if !c.when {
				continue
			}
			name, o := openRequest(openArgs{version: v, change: c.change})
			f, err := tree.Open(bg, name, o)
			if err == nil {
				f.Close()
			}
			wantStatus(t, c.name, err, c.want)
		}
	})
}

func TestNegative_Files(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		tree := s.connect(t)
		if err := os.WriteFile(filepath.Join(s.dir, "text.vhdx"), bytes.Repeat([]byte("no disk "), 1<<17), 0o600); err != nil {
			t.Fatal(err)
		}
		try := func(name string) error {
			name, o := openRequest(openArgs{version: v, name: name})
			f, err := tree.Open(bg, name, o)
			if err == nil {
				f.Close()
			}
			return err
		}
		if err := try("none.vhdx" + tunnel.Suffix); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing file: %v", err)
		}
		if _, err := os.Stat(filepath.Join(s.dir, "none.vhdx")); err == nil {
			t.Error("the missing file was made")
		}
		wantStatus(t, "not a VHDX", try("text.vhdx"+tunnel.Suffix), ntstatus.SVHDXWrongFileType)
		if err := try(diskName + ":sharedvirtualdisk"); err != nil {
			t.Errorf("the suffix in lower case: %v", err)
		}
	})
}

// ms-rsvd.md 11.5: an open that buffers may not read and write; 11.8: locks and renames.
func TestNegative_OtherOperations(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		tree := s.connect(t)
		buffered := openDisk(t, tree, openArgs{version: v, options: wire.OptNonDirectoryFile})
		_, err := buffered.f.ReadAt(bg, make([]byte, 512), 0)
		wantStatus(t, "READ of a buffered open", err, ntstatus.NotSupported)
		_, err = buffered.f.WriteAt(bg, make([]byte, 512), 0)
		wantStatus(t, "WRITE of a buffered open", err, ntstatus.NotSupported)
		buffered.close()

		o := openDisk(t, tree, openArgs{version: v})
		defer o.close()
		wantStatus(t, "rename", o.f.Rename(bg, "other.vhdx", false), ntstatus.NotSupported)
		if n, err := o.f.Size(bg); err != nil || n != diskSize {
			t.Errorf("EndOfFile %d (%v), want the size of the disk", n, err)
		}
		for code, want := range map[uint32]ntstatus.Status{wire.FsctlOffloadRead: ntstatus.OffloadReadFileNotSupported, wire.FsctlOffloadWrite: ntstatus.OffloadWriteFileNotSupported} {
			_, err := o.raw(code, make([]byte, 64), 4096)
			wantStatus(t, "offload", err, want)
		}
		for _, p := range []struct {
			off int64
			n   int
		}{{diskSize, 512}, {diskSize - 512, 1024}} {
			if _, err := o.f.WriteAt(bg, make([]byte, p.n), p.off); err == nil {
				t.Errorf("WRITE of %d at %d, beyond the end, succeeded", p.n, p.off)
			}
		}
		// A tunnel operation on an open that is no shared disk.
		plain, err := tree.Open(bg, "plain", client.OpenOptions{Access: wire.AccessReadData | wire.AccessWriteData, Share: 7, Disposition: wire.FileCreate})
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		_, err = plain.Ioctl(bg, tunnel.FsctlSyncTunnelRequest, (&tunnel.RequestHeader{Op: tunnel.OpGetInitialInfo}).Append(nil), nil, make([]byte, 4096), nil)
		wantStatus(t, "tunnel on a plain open", err, ntstatus.InvalidDeviceRequest)
	})
}

// The plain file and the shared disk exclude each other. ms-rsvd.md 11.1
func TestNegative_PlainAndShared(t *testing.T) {
	each(t, func(t *testing.T, s *sut, v uint32) {
		tree := s.connect(t)
		o := openDisk(t, tree, openArgs{version: v})
		defer o.close()
		for name, a := range map[string]openArgs{
			"VHDMP with the suffix": {version: v, change: func(b []byte) []byte { b[28] = 4; return b }},
			"VHDMP without":         {version: v, name: diskName, change: func(b []byte) []byte { b[28] = 4; return b }},
		} {
			n, oo := openRequest(a)
			f, err := tree.Open(bg, n, oo)
			if err == nil {
				f.Close()
			}
			wantStatus(t, name, err, ntstatus.VHDShared)
		}
	})
}

// Keys count from 1, wrap from 255 to 0, and the entry of a key is the last one stored under it. ms-rsvd.md 8.6
func TestStoredSenseKeys(t *testing.T) {
	s := start(t, 1)
	o := openDisk(t, s.connect(t), openArgs{version: 1, noInitiator: true})
	defer o.close()
	if _, got := o.tunnelStatus(tunnel.OpSRBStatus, (&tunnel.SRBStatusRequest{StatusKey: 9}).Append(nil), 4096); got != ntstatus.SVHDXErrorNotAvailable {
		t.Errorf("nothing stored: %v", got)
	}
	for i := 1; i <= 258; i++ {
		_, err := o.f.ReadAt(bg, make([]byte, 512), 0)
		wantStatus(t, "READ", err, ntstatus.SVHDXErrorStored|ntstatus.Status(byte(i)))
	}
	if b, got := o.tunnelStatus(tunnel.OpSRBStatus, (&tunnel.SRBStatusRequest{StatusKey: 0}).Append(nil), 4096); got != 0 || b[0] != 0 {
		t.Errorf("key 0: %v", got)
	}
}
