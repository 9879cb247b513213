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
	for _, at := range []int64{100, 101, 103, 201, 203} {
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

// TestLeaseBesideOthers: nobody of this host reads or writes what a client caches, and no client caches what others of this host read or write.
func TestLeaseBesideOthers(t *testing.T) {
	s := startServer(t, nil)
	s.write("a", "content")
	s2 := startServer(t, func(c *Config) { c.Shares[0].Dir = s.path("") })
	p, q := s.connect(t, wire.Dialect311, "disks"), s2.connect(t, wire.Dialect311, "disks")
	const r, w = wire.AccessReadData, wire.AccessReadData | wire.AccessWriteData
	const all = cacheAll
	req := func(access uint32) *wire.CreateRequest {
		c := openReq("a")
		c.DesiredAccess, c.Disposition = access, wire.FileOpen
		return c
	}
	lease := func(access, state uint32) *wire.CreateRequest { return withLease(req(access), 1, state) }
	for _, c := range []struct {
		what         string
		held         *wire.CreateRequest
		granted      uint32
		second       *wire.CreateRequest
		want         ntstatus.Status
		secondsLease uint32
	}{
		{"a reader beside a cache of writes", lease(w, all), all, req(r), ntstatus.SharingViolation, 0},
		{"a reader beside a cache of reads", lease(w, cacheRead|cacheHandle), cacheRead | cacheHandle, req(r), ntstatus.Success, 0},
		{"a writer beside a cache of reads", lease(r, cacheRead), cacheRead, req(w), ntstatus.SharingViolation, 0},
		{"a cache of all beside a reader", req(r), 0, lease(r, all), ntstatus.Success, cacheRead | cacheHandle},
		{"a cache of reads beside a writer", req(w), 0, lease(r, cacheRead), ntstatus.Success, 0},
	} {
		resp, st := p.tryOpen(c.held)
		check(t, c.what+": first open", st, ntstatus.Success)
		if got := leaseOf(resp); got != c.granted {
			t.Errorf("%s: lease %#x, want %#x", c.what, got, c.granted)
		}
		resp2, st := q.tryOpen(c.second)
		check(t, c.what, st, c.want)
		if st == ntstatus.Success {
			if got := leaseOf(resp2); got != c.secondsLease {
				t.Errorf("%s: lease of the second %#x, want %#x", c.what, got, c.secondsLease)
			}
			q.close(resp2.FileID)
		}
		p.close(resp.FileID)
		again, st := q.tryOpen(lease(w, all))
		check(t, c.what+", when the first is gone", st, ntstatus.Success)
		if got := leaseOf(again); got != all {
			t.Errorf("%s, when the first is gone: lease %#x", c.what, got)
		}
		q.close(again.FileID)
	}
}
