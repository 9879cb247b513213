package server

import (
	"testing"

	"vdbridge/smb/fscc"
	"vdbridge/smb/ntstatus"
	"vdbridge/smb/tunnel"
	"vdbridge/smb/wire"
)

func diskReq(name string, ctx []byte) *wire.CreateRequest {
	return &wire.CreateRequest{Impersonation: 2, DesiredAccess: 0x00020083, ShareAccess: 7, Disposition: wire.FileOpen, Options: wire.OptNoIntermediateBuffering, Name: name,
		Contexts: []wire.CreateContext{{Name: wire.CreateSVHDX, Data: ctx}}}
}

func TestSharedDisk(t *testing.T) {
	s := diskServer(t)
	s.write("d.vhdx", "the file itself")
	p := s.connect(t, wire.Dialect302, "disks")
	resp, st := p.tryOpen(diskReq("D.VHDX:SharedVirtualDisk", make([]byte, 168)))
	check(t, "open", st, ntstatus.Success)
	if len(resp.Contexts) != 1 || resp.Contexts[0].Name != wire.CreateSVHDX || len(resp.Contexts[0].Data) != 168 || resp.EndOfFile != 1<<20 {
		t.Errorf("reply %+v", resp)
	}
	id := resp.FileID
	q := s.connect(t, wire.Dialect311, "disks")
	id2 := q.open(diskReq(`d.vhdx:sharedvirtualdisk`, make([]byte, 168)))
	check(t, "WRITE", p.write(id, 4096, "one"), ntstatus.Success)
	if got, _ := q.read(id2, 4096, 3); got != "one" {
		t.Errorf("the other open reads %q", got)
	}
	// Errors of the disk pass as they are.
	_, st = p.read(id, 1<<30, 512)
	check(t, "READ beyond the disk", st, ntstatus.SVHDXErrorStored|1)
	check(t, "WRITE beyond the disk", p.write(id, 1<<30, "x"), ntstatus.SVHDXReservationConflict)
	in := make([]byte, 16)
	out, st := p.ioctl(id, tunnel.FsctlSyncTunnelRequest, in, 8192)
	if st != ntstatus.Success || len(out) != 16+4096 {
		t.Errorf("tunnel: %v, %d bytes", st, len(out))
	}
	_, st = p.ioctl(id, tunnel.FsctlSyncTunnelRequest, in[:3], 8192)
	check(t, "short tunnel request", st, ntstatus.BufferTooSmall)
	out, _ = p.ioctl(id, tunnel.FsctlQuerySharedVirtualDiskSupport, nil, 8)
	if len(out) != 8 || out[0] != 1 || out[4] != 3 {
		t.Errorf("support % x", out)
	}
	_, st = p.ioctl(id, tunnel.FsctlQuerySharedVirtualDiskSupport, nil, 7)
	check(t, "support with a short buffer", st, ntstatus.BufferTooSmall)
	_, st = p.ioctl(id, wire.FsctlOffloadRead, nil, 100)
	check(t, "offload read", st, ntstatus.OffloadReadFileNotSupported)
	_, st = p.ioctl(id, wire.FsctlOffloadWrite, nil, 100)
	check(t, "offload write", st, ntstatus.OffloadWriteFileNotSupported)
	lock := wire.LockRequest{FileID: id, Locks: []wire.LockElement{{Length: 1, Flags: wire.LockExclusive}}}
	check(t, "LOCK", p.ask(wire.CmdLock, lock.Append).status(), ntstatus.LockNotGranted)
	set := func(class uint8) ntstatus.Status {
		return p.ask(wire.CmdSetInfo, (&wire.SetInfoRequest{InfoType: wire.InfoFile, FileInfoClass: class, FileID: id, Buffer: make([]byte, 40)}).Append).status()
	}
	check(t, "rename", set(fscc.FileRenameInformation), ntstatus.NotSupported)
	check(t, "link", set(fscc.FileLinkInformation), ntstatus.InvalidParameter)
	query := func(class uint8, n uint32) *reply {
		return p.ask(wire.CmdQueryInfo, (&wire.QueryInfoRequest{InfoType: wire.InfoFile, FileInfoClass: class, OutputBufferLength: n, FileID: id}).Append)
	}
	r := query(fscc.FileStandardInformation, 24)
	body, err := wire.ParseOutputResponse(r.msg)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := fscc.ParseStandardInfo(body.Buffer); err != nil || i.EndOfFile != 1<<20 {
		t.Errorf("standard information %+v, %v", i, err)
	}
	check(t, "standard information with a short buffer", query(fscc.FileStandardInformation, 20).status(), ntstatus.BufferTooSmall)

	// Plain opens.
	w := openReq("d.vhdx")
	w.DesiredAccess = wire.AccessWriteData
	_, st = q.tryOpen(w)
	check(t, "plain open for writing", st, ntstatus.SharingViolation)
	for _, d := range []uint32{wire.FileSupersede, wire.FileOverwrite, wire.FileOverwriteIf} {
		w.DesiredAccess, w.Disposition = wire.AccessReadAttributes, d
		_, st = q.tryOpen(w)
		check(t, "plain open that empties the file", st, ntstatus.SharingViolation)
	}
	w.Disposition = wire.FileOpenIf
	w.DesiredAccess = wire.AccessReadData
	plain := q.open(w)
	if got, _ := q.read(plain, 0, 8); got != "the file" {
		t.Errorf("the plain open reads %q", got)
	}
	_, st = q.ioctl(plain, tunnel.FsctlSyncTunnelRequest, in, 100)
	check(t, "tunnel on a plain open", st, ntstatus.InvalidDeviceRequest)
	out, _ = q.ioctl(plain, tunnel.FsctlQuerySharedVirtualDiskSupport, nil, 8)
	if len(out) != 8 || out[0] != 1 {
		t.Errorf("support on a plain open % x", out)
	}
	check(t, "close", p.close(id), ntstatus.Success)
	check(t, "close", q.close(id2), ntstatus.Success)
	// The other way round.
	q.close(plain)
	w.DesiredAccess = wire.AccessWriteData
	plain = q.open(w)
	_, st = p.tryOpen(diskReq("d.vhdx:SharedVirtualDisk", make([]byte, 168)))
	check(t, "shared open while it is written", st, ntstatus.SharingViolation)
	q.close(plain)
}

func TestSharedDiskRefused(t *testing.T) {
	s := diskServer(t)
	s.write("d.vhdx", "x")
	ctx := make([]byte, 168)
	p := s.connect(t, wire.Dialect300, "disks")
	_, st := p.tryOpen(diskReq("d.vhdx:SharedVirtualDisk", ctx))
	check(t, "dialect 3.0", st, ntstatus.ObjectNameInvalid)
	p = s.connect(t, wire.Dialect311, "disks")
	_, st = p.tryOpen(diskReq("no.vhdx:SharedVirtualDisk", ctx))
	check(t, "no such file", st, ntstatus.ObjectNameNotFound)
	req := diskReq("d.vhdx:SharedVirtualDisk", ctx)
	req.Contexts = nil
	_, st = p.tryOpen(req)
	check(t, "without the context", st, ntstatus.ObjectNameInvalid)
	vhdmp := make([]byte, 168)
	vhdmp[28] = originatorVHDMP
	_, st = p.tryOpen(diskReq("d.vhdx", vhdmp))
	check(t, "VHDMP without the suffix", st, ntstatus.VHDShared)
	plain := p.open(diskReq("d.vhdx", ctx)) // the context is ignored
	if got, _ := p.read(plain, 0, 9); got != "x" {
		t.Errorf("read %q", got)
	}

	s = startServer(t, nil) // no disks
	s.write("d.vhdx", "x")
	p = s.connect(t, wire.Dialect311, "disks")
	_, st = p.tryOpen(diskReq("d.vhdx:SharedVirtualDisk", ctx))
	check(t, "server without disks", st, ntstatus.ObjectNameInvalid)
	id := p.open(diskReq("d.vhdx", vhdmp))
	for _, code := range []uint32{tunnel.FsctlSyncTunnelRequest, tunnel.FsctlAsyncTunnelRequest, tunnel.FsctlQuerySharedVirtualDiskSupport} {
		_, st = p.ioctl(id, code, nil, 8)
		check(t, "server without disks", st, ntstatus.InvalidDeviceRequest)
	}
}

func TestMatchName(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "anything.txt", true}, {"*.TXT", "a.txt", true}, {"*.TXT", "a.txtx", false}, {"A?C", "abc", true}, {"A?C", "ac", false},
		{"", "", true}, {"", "a", false}, {"ÄÖ*", "äöü", true}, {"*A*B*", "xxaxxbxx", true}, {"*A*B*", "xxbxxaxx", false},
		// DOS_STAR, DOS_QM, DOS_DOT. [MS-FSA] 2.1.4.4
		{"<", "ab", true}, {"<", "a.b", false}, {"<.B", "a.x.b", true}, {"A>>", "a", true}, {"A>>", "abc", true}, {"A>>", "abcd", false}, {"A>.B", "a.b", true},
		{`A"B`, "a.b", true}, {`A"`, "a", true}, {`<"`, "abc", true}, {`>>>>>>>>">>>`, "readme.txt", true}, {`>>>>>>>>">>>`, "readme", true},
	} {
		if got := matchName(c.pattern, c.name); got != c.want {
			t.Errorf("%q against %q: %v", c.pattern, c.name, got)
		}
	}
}
