package server

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vdbridge/smb/ntstatus"
	"vdbridge/smb/wire"
)

// Two servers on one directory keep each other's share modes.
func TestTwoServersOneDirectory(t *testing.T) {
	s := startServer(t, nil)
	s.write("a.vhdx", "content")
	s2 := startServer(t, func(c *Config) { c.Shares[0].Dir = s.path("") })
	p, q := s.connect(t, wire.Dialect311, "disks"), s2.connect(t, wire.Dialect311, "disks")
	all := uint32(wire.ShareRead | wire.ShareWrite | wire.ShareDelete)
	req := func(access, share uint32) *wire.CreateRequest {
		r := openReq("a.vhdx")
		r.DesiredAccess, r.ShareAccess, r.Disposition = access, share, wire.FileOpen
		return r
	}
	const r, w = wire.AccessReadData, wire.AccessReadData | wire.AccessWriteData
	for _, c := range []struct {
		what           string
		access1, share uint32
		access2        uint32
		share2         uint32
		want           ntstatus.Status
	}{
		{"two who share all", w, all, w, all, ntstatus.Success},
		{"a second writer", w, 0, w, all, ntstatus.SharingViolation},
		{"a reader of what is not shared", w, 0, r, all, ntstatus.SharingViolation},
		{"a writer where only reading is shared", w, wire.ShareRead, w, all, ntstatus.SharingViolation},
		{"a reader where reading is shared", w, wire.ShareRead, r, all, ntstatus.Success},
		{"a reader who suffers no writer", w, all, r, wire.ShareRead, ntstatus.SharingViolation},
		{"two readers", r, wire.ShareRead, r, wire.ShareRead, ntstatus.Success},
		{"who only looks", w, 0, wire.AccessReadAttributes, 0, ntstatus.Success},
	} {
		id := p.open(req(c.access1, c.share))
		resp, st := q.tryOpen(req(c.access2, c.share2))
		check(t, c.what, st, c.want)
		if st == ntstatus.Success {
			q.close(resp.FileID)
		}
		p.close(id)
		again, st := q.tryOpen(req(w, 0))
		check(t, c.what+", when the first is gone", st, ntstatus.Success)
		q.close(again.FileID)
	}
	// QEMU, or a server of ours with the image open as a shared disk.
	f, err := os.OpenFile(s.path("a.vhdx"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{hostRead, hostWrite, hostResize, hostUnshareWrite, hostUnshareResize} {
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}); err != nil {
			t.Skip("SKIPPED, nothing was tested: no locks on this file system: ", err)
		}
	}
	_, st := p.tryOpen(req(w, all))
	check(t, "a writer beside QEMU", st, ntstatus.SharingViolation)
	resp, st := p.tryOpen(req(r, all))
	check(t, "a reader beside QEMU", st, ntstatus.Success)
	p.close(resp.FileID)
}
